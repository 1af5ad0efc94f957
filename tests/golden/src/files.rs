//! The files: what is expected, compared with what is, and written anew.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use tessera_tcg::backend::HostVec;

use crate::listing;
use crate::rig;
use crate::snippet::Theme;
use crate::themes;

/// The file of all counts.
const SUMMARY: &str = "summary";
/// Lines around those that differ that are shown.
const AROUND: usize = 3;
/// Set, files are written instead of compared.
const BLESS: &str = "TESSERA_BLESS";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("expected").join(format!("{name}.txt"))
}

/// A snippet's name and its text, heading included.
type Section = (String, String);

/// What a theme is now: its text, and its lines of the summary.
fn render(theme: &Theme) -> (String, Vec<String>) {
    let mut snippets: Vec<_> = theme.snippets.iter().collect();
    snippets.sort_by_key(|snippet| snippet.name);
    let mut text = String::new();
    let mut lines = Vec::new();
    for snippet in snippets {
        let (section, counts) = listing::text(snippet, &rig::translate(snippet));
        text += &section;
        text.push('\n');
        let name = format!("{}/{}", theme.name, snippet.name);
        lines.push(format!("{name:<40} {:>5} {:>5} {:>5}", counts.guest, counts.hot, counts.cold));
    }
    (text, lines)
}

/// The sections of a file.
fn sections(text: &str) -> Vec<Section> {
    let mut all = Vec::new();
    for section in text.split("=== ").skip(1) {
        let name = section.split(' ').next().unwrap_or_default();
        all.push((name.to_owned(), section.trim_end().to_owned()));
    }
    all
}

/// Lines that are only in one of two texts, marked `-` and `+`, with `around` lines around them.
fn difference(was: &str, is: &str, around: usize) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (was.lines().collect(), is.lines().collect());
    // The longest common subsequence, from each pair of positions on.
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push(format!("    {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && common[i + 1][j] >= common[i][j + 1] {
            lines.push(format!("  - {}", a[i]));
            i += 1;
        } else {
            lines.push(format!("  + {}", b[j]));
            j += 1;
        }
    }
    let differs = |line: &String| !line.starts_with("    ");
    let near =
        |n: usize| lines[n.saturating_sub(around)..(n + around + 1).min(lines.len())].iter().any(differs);
    let shown: Vec<_> = (0..lines.len()).filter(|n| near(*n)).map(|n| lines[n].as_str()).collect();
    shown.join("\n")
}

/// How a theme's text differs from what is expected; nothing if it does not.
fn compare(theme: &str, was: &str, is: &str) -> String {
    let (was, is) = (sections(was), sections(is));
    let find =
        |all: &[Section], name: &str| all.iter().find(|(n, _)| n == name).map(|(_, text)| text.clone());
    let mut out = String::new();
    for (name, now) in &is {
        // Writing to a string cannot fail, here and below.
        match find(&was, name) {
            Some(before) if before == *now => {}
            Some(before) => {
                let _ = writeln!(out, "{theme}/{name} differs:\n{}", difference(&before, now, AROUND));
            }
            None => {
                let _ = writeln!(out, "{theme}/{name} is not in the file");
            }
        }
    }
    for (name, _) in was.iter().filter(|(name, _)| find(&is, name).is_none()) {
        let _ = writeln!(out, "{theme}/{name} is in the file, but there is no such snippet");
    }
    out
}

/// Why the host cannot say how a theme is translated.
fn unable(theme: &Theme) -> Option<String> {
    let enough = (theme.host)(&HostVec::detect());
    (!enough).then(|| format!("{}: this host's processor lacks instructions for it", theme.name))
}

/// Compares all files with what is, or writes them if that is asked for. What was skipped, or how they differ.
pub fn check() -> Result<Vec<String>, String> {
    let bless = std::env::var_os(BLESS).is_some();
    let mut summary = Vec::new();
    let (mut skipped, mut differences) = (Vec::new(), String::new());
    for theme in themes::ALL {
        if let Some(why) = unable(theme) {
            if bless {
                return Err(format!("{why}: bless on another host"));
            }
            skipped.push(why);
            continue;
        }
        let (text, lines) = render(theme);
        summary.extend(lines);
        if bless {
            fs::write(path(theme.name), &text).map_err(|e| format!("{}: {e}", path(theme.name).display()))?;
        } else {
            let was = fs::read_to_string(path(theme.name)).unwrap_or_default();
            differences += &compare(theme.name, &was, &text);
        }
    }
    summary.sort();
    let heading = format!("{:<40} {:>5} {:>5} {:>5}", "theme/snippet", "guest", "hot", "cold");
    let summary: String =
        std::iter::once(heading).chain(summary).map(|line| line.trim_end().to_owned() + "\n").collect();
    if bless {
        fs::write(path(SUMMARY), summary).map_err(|e| e.to_string())?;
        remove_strangers()?;
    } else {
        let was = fs::read_to_string(path(SUMMARY)).unwrap_or_default();
        if skipped.is_empty() && was != summary {
            let changed = difference(&was, &summary, 0);
            let _ = writeln!(differences, "guest, hot and cold instructions:\n{changed}");
        }
    }
    if differences.is_empty() {
        Ok(skipped)
    } else {
        Err(format!(
            "{differences}`cargo xtask golden --bless` writes the files anew, if this is as it should be"
        ))
    }
}

/// Removes the files of themes that are no more.
fn remove_strangers() -> Result<(), String> {
    let known = |name: &str| name == SUMMARY || themes::ALL.iter().any(|theme| theme.name == name);
    let folder = path(SUMMARY);
    let folder = folder.parent().expect("the file is in a folder");
    for entry in fs::read_dir(folder).map_err(|e| e.to_string())?.flatten() {
        let file = entry.path();
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if !known(stem) {
            fs::remove_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_snippet() {
        let was = "=== a (user): 1 guest\nx\ny\nz\n\n=== gone (user)\n\n";
        let is = "=== a (user): 1 guest\nx\nw\nz\n\n=== new (user)\n\n";
        let told = compare("t", was, is);
        assert!(told.contains("t/a differs:\n    a (user): 1 guest\n    x\n  - y\n  + w\n    z\n"), "{told}");
        assert!(
            told.contains("t/new is not in the file") && told.contains("t/gone is in the file"),
            "{told}"
        );
        assert_eq!(compare("t", was, was), "");
    }

    #[test]
    fn translating_twice_gives_the_same_text() {
        let theme = &themes::ALL[0];
        assert_eq!(render(theme), render(theme));
    }

    #[test]
    fn names_are_unique() {
        for theme in themes::ALL {
            let mut names: Vec<_> = theme.snippets.iter().map(|snippet| snippet.name).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{}: {names:?}", theme.name);
        }
    }
}
