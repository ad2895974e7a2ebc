//! What the machine has open. It chooses the numbers, so they outlive a server.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::io::Errno;

/// An open file or directory.
pub struct Handle {
    pub fd: OwnedFd,
    pub append: bool,
    /// Held while a directory is read: all who read it share where it stands.
    pub reading: Mutex<()>,
}

impl Handle {
    pub fn new(fd: OwnedFd, append: bool) -> Self {
        Self {
            fd,
            append,
            reading: Mutex::new(()),
        }
    }
}

pub struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    most: usize,
}

impl Handles {
    pub fn new(most: usize) -> Self {
        Self {
            open: RwLock::default(),
            most,
        }
    }

    /// The handle of that number. ESTALE: it was lost with an earlier server.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&number).cloned().ok_or(Errno::STALE)
    }

    pub fn add(&self, number: u64, handle: Handle) -> Result<(), Errno> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if number == 0 || open.contains_key(&number) {
            return Err(Errno::INVAL);
        }
        if open.len() >= self.most {
            return Err(Errno::NFILE);
        }
        open.insert(number, Arc::new(handle));
        Ok(())
    }

    pub fn remove(&self, number: u64) {
        let removed = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            open.remove(&number)
        };
        // Closing may take long.
        drop(removed);
    }
}
