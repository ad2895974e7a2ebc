//! The files that the kernel knows, by the numbers that the pump gave them: their names and what is open.
//!
//! It lies in the machine's memory, so it goes wherever that goes: into a saved machine, into copies of
//! a running one. The server has none of it, and may be another one with each request.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// The number of the shared directory itself.
pub const TOP: u64 = 1;
/// A path is given up when it is longer, as are those of files whose directories go in a circle.
const MAX_PATH: usize = 60_000;

type Name = (u64, Box<[u8]>);

/// A file.
#[derive(Debug, Default)]
struct Node {
    /// Directory and name; more than one where links to it were seen.
    names: Vec<Name>,
    identity: (u64, u64),
    /// How often the kernel was told its number.
    lookups: u64,
    /// Its mode's type.
    kind: u32,
    handles: Vec<u64>,
}

/// Something open.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    pub node: u64,
    pub flags: u32,
    pub directory: bool,
}

#[derive(Debug)]
pub struct Table {
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<(u64, u64), u64>,
    by_name: HashMap<Name, u64>,
    pub open: HashMap<u64, Open>,
    last_node: u64,
    last_handle: u64,
    /// The shared directory's `st_ino`, by which it is watched.
    pub top_ino: u64,
}

impl Default for Table {
    fn default() -> Self {
        let mut table = Self {
            nodes: HashMap::new(),
            by_identity: HashMap::new(),
            by_name: HashMap::new(),
            open: HashMap::new(),
            last_node: TOP,
            last_handle: 0,
            top_ino: TOP,
        };
        table.nodes.insert(TOP, Node::default());
        table
    }
}

impl Table {
    /// The path of a file from the shared directory; None: it has none that is known.
    #[must_use]
    pub fn path(&self, node: u64) -> Option<Vec<u8>> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let (mut at, mut length) = (node, 0);
        while at != TOP {
            let names = &self.nodes.get(&at)?.names;
            // The latest name whose directory is known.
            let (parent, name) = names
                .iter()
                .rev()
                .find(|(parent, _)| self.nodes.contains_key(parent))?;
            length += name.len() + 1;
            if length > MAX_PATH {
                return None;
            }
            parts.push(name);
            at = *parent;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    #[must_use]
    pub fn identity(&self, node: u64) -> (u64, u64) {
        self.nodes.get(&node).map_or((0, 0), |node| node.identity)
    }

    /// Something that is open of a file, 0 if nothing is.
    #[must_use]
    pub fn handle_of(&self, node: u64) -> u64 {
        let node = self.nodes.get(&node);
        node.and_then(|node| node.handles.last().copied())
            .unwrap_or(0)
    }

    pub fn new_handle(&mut self) -> u64 {
        self.last_handle += 1;
        self.last_handle
    }

    /// The kernel is being told of a file: its number. Without a name it is one that has none yet.
    pub fn entered(&mut self, name: Option<(u64, &[u8])>, identity: (u64, u64)) -> u64 {
        let number = match self.by_identity.entry(identity) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.last_node += 1;
                *new.insert(self.last_node)
            }
        };
        let node = self.nodes.entry(number).or_default();
        node.identity = identity;
        node.lookups += 1;
        if let Some((parent, name)) = name {
            self.name(number, parent, name);
        }
        number
    }

    /// What kind of file it is: the type in its mode.
    #[must_use]
    pub fn kind(&self, node: u64) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.kind)
    }

    pub fn is_of_kind(&mut self, number: u64, kind: u32) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.kind = kind;
        }
    }

    /// The file that had a name when it was last seen.
    #[must_use]
    pub fn named(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.by_name.get(&(parent, name.into())).copied()
    }

    /// The directories that are among files of these `st_ino`, and those in which the others are.
    #[must_use]
    pub fn directories(&self, inos: impl Iterator<Item = u64>) -> Vec<u64> {
        const DIRECTORY: u32 = 0o040_000;
        let inos: HashSet<u64> = inos.collect();
        let mut found = Vec::new();
        if inos.is_empty() {
            return found;
        }
        if inos.contains(&TOP) || inos.contains(&self.top_ino) {
            found.push(TOP);
        }
        for (&number, node) in &self.nodes {
            if !inos.contains(&node.identity.0) {
                continue;
            }
            if node.kind == DIRECTORY {
                found.push(number);
            } else {
                found.extend(node.names.iter().map(|(parent, _)| *parent));
            }
        }
        found
    }

    fn name(&mut self, number: u64, parent: u64, name: &[u8]) {
        let key: Name = (parent, name.into());
        match self.by_name.get(&key) {
            Some(&named) if named == number => return,
            Some(_) => self.unnamed(parent, name),
            None => {}
        }
        if let Some(node) = self.nodes.get_mut(&number) {
            node.names.push(key.clone());
            self.by_name.insert(key, number);
        }
    }

    /// There is nothing of that name any more.
    pub fn unnamed(&mut self, parent: u64, name: &[u8]) {
        let key: Name = (parent, name.into());
        if let Some(number) = self.by_name.remove(&key)
            && let Some(node) = self.nodes.get_mut(&number)
        {
            node.names.retain(|name| *name != key);
        }
    }

    pub fn renamed(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), exchange: bool) {
        let moved = self.by_name.get(&(from.0, from.1.into())).copied();
        let other = self.by_name.get(&(to.0, to.1.into())).copied();
        self.unnamed(from.0, from.1);
        self.unnamed(to.0, to.1);
        if let Some(moved) = moved {
            self.name(moved, to.0, to.1);
        }
        if exchange && let Some(other) = other {
            self.name(other, from.0, from.1);
        }
    }

    /// The kernel forgets a file as often as `count`.
    pub fn forgotten(&mut self, number: u64, count: u64) {
        if number == TOP {
            return;
        }
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return;
        }
        if let Some(node) = self.nodes.remove(&number) {
            if self.by_identity.get(&node.identity) == Some(&number) {
                self.by_identity.remove(&node.identity);
            }
            for name in node.names {
                self.by_name.remove(&name);
            }
        }
    }

    pub fn opened(&mut self, handle: u64, open: Open) {
        if let Some(node) = self.nodes.get_mut(&open.node) {
            node.handles.push(handle);
        }
        self.open.insert(handle, open);
    }

    pub fn released(&mut self, handle: u64) {
        if let Some(open) = self.open.remove(&handle)
            && let Some(node) = self.nodes.get_mut(&open.node)
        {
            node.handles.retain(|&other| other != handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_renames_of_directories() {
        let mut table = Table::default();
        let directory = table.entered(Some((TOP, b"a")), (10, 1));
        let file = table.entered(Some((directory, b"f")), (11, 1));
        assert_eq!(table.path(file).as_deref(), Some(&b"a/f"[..]));
        table.renamed((TOP, b"a"), (TOP, b"b"), false);
        assert_eq!(table.path(file).as_deref(), Some(&b"b/f"[..]));
    }

    #[test]
    fn what_is_replaced_has_no_name() {
        let mut table = Table::default();
        let old = table.entered(Some((TOP, b"old")), (10, 1));
        let new = table.entered(Some((TOP, b"new")), (11, 1));
        table.renamed((TOP, b"new"), (TOP, b"old"), false);
        assert_eq!(table.path(old), None);
        assert_eq!(table.path(new).as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn exchanged_names_are_both_known() {
        let mut table = Table::default();
        let one = table.entered(Some((TOP, b"1")), (10, 1));
        let two = table.entered(Some((TOP, b"2")), (11, 1));
        table.renamed((TOP, b"1"), (TOP, b"2"), true);
        assert_eq!(table.path(one).as_deref(), Some(&b"2"[..]));
        assert_eq!(table.path(two).as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_link_keeps_its_other_name() {
        let mut table = Table::default();
        let file = table.entered(Some((TOP, b"1")), (10, 1));
        assert_eq!(table.entered(Some((TOP, b"2")), (10, 1)), file);
        table.unnamed(TOP, b"2");
        assert_eq!(table.path(file).as_deref(), Some(&b"1"[..]));
        table.unnamed(TOP, b"1");
        assert_eq!(table.path(file), None);
    }

    #[test]
    fn the_forgotten_are_gone_when_all_lookups_are() {
        let mut table = Table::default();
        let file = table.entered(Some((TOP, b"1")), (10, 1));
        table.entered(Some((TOP, b"1")), (10, 1));
        table.forgotten(file, 1);
        assert!(table.path(file).is_some());
        table.forgotten(file, 1);
        assert_eq!(table.path(file), None);
        assert!(table.by_name.is_empty() && table.by_identity.is_empty());
        assert_eq!(table.nodes.len(), 1);
    }

    #[test]
    fn a_circle_ends() {
        let mut table = Table::default();
        let one = table.entered(Some((TOP, b"1")), (10, 1));
        let two = table.entered(Some((one, b"2")), (11, 1));
        table.renamed((TOP, b"1"), (two, b"1"), false);
        assert_eq!(table.path(two), None);
    }
}
