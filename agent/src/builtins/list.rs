//! `stat --list`: what is in a directory, a line of JSON for each entry.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::Report;
use super::sftp::listing::Names;
use super::single::fields;

pub(super) fn run(path: &Path, report: &mut Report) {
    let mut out = BufWriter::new(io::stdout());
    let mut names = Names::default();
    let mut told = |path: &Path, name: &str, report: &mut Report| match line(path, name, &mut names)
    {
        Ok(line) => out.write_all(line.as_bytes()),
        Err(error) => {
            report.error(path, &error);
            Ok(())
        }
    };
    let written = match fs::read_dir(path) {
        Ok(entries) => {
            let mut found: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            found.sort_unstable();
            (found.iter())
                .try_for_each(|name| told(&path.join(name), &name.to_string_lossy(), report))
        }
        // A file, or a link that leads nowhere.
        Err(_) if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) => {
            told(path, &path.to_string_lossy(), report)
        }
        Err(error) => {
            report.error(path, &error);
            Ok(())
        }
    };
    if let Err(error) = written.and_then(|()| out.flush()) {
        report.error("stdout", &error);
    }
}

fn line(path: &Path, name: &str, names: &mut Names) -> io::Result<String> {
    let found = fs::symlink_metadata(path)?;
    let [user, group] = names.owners(&found);
    let mut line = format!(
        "{{\"name\": {}, {}, \"user\": {}, \"group\": {}",
        quoted(name),
        fields(&found),
        quoted(&user),
        quoted(&group)
    );
    if found.is_symlink() {
        let target = fs::read_link(path)?;
        let _ = write!(line, ", \"target\": {}", quoted(&target.to_string_lossy()));
    }
    line.push_str("}\n");
    Ok(line)
}

/// Text as JSON has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_is_quoted() {
        assert_eq!(super::quoted("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }
}
