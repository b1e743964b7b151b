//! `test --coverage`, second half: which tests name which of the behaviours that have an id (`tests/rows.txt`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Tally;
use crate::lint;
use crate::shell::Workspace;

const TABLE: &str = "tests/rows.txt";
/// Names shown of each row's tests.
const SHOWN: usize = 3;

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    id: &'a str,
    title: &'a str,
    /// Other rows about the same behaviour: their tests are its tests.
    same: Vec<&'a str>,
    /// Why no test names it.
    reason: Option<&'a str>,
}

/// Prints every row with its tests; one that has neither tests nor a reason counts as failed, and so does one with both.
pub fn report(workspace: &Workspace) -> Result<Tally> {
    let path = workspace.root.join(TABLE);
    let table = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let named = named(&workspace.root, &table)?;
    println!("\n== rows ==");
    let mut tally = Tally::default();
    let (mut tested, mut reasoned) = (0, 0);
    for row in rows(&table) {
        let row = match row {
            Ok(row) => row,
            Err(heading) => {
                println!("\n{heading}");
                continue;
            }
        };
        let tests = row.tests(&named);
        println!("{:5} {}: {}", row.id, row.title, told(&tests, row.reason));
        if tests.is_empty() {
            reasoned += 1
        } else {
            tested += 1
        }
        if let Some(fault) = row.fault(&tests) {
            tally.fail(format!("coverage: {fault}"));
        }
    }
    println!("\n{} rows: {tested} named by tests, {reasoned} not, with a reason", tested + reasoned);
    Ok(tally)
}

/// Which tests name each row of the table.
fn named(root: &Path, table: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let ids: BTreeSet<&str> = rows(table).filter_map(Result::ok).map(|row| row.id).collect();
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in lint::rust_files(root)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        for (id, test) in mentions(name, &text, &ids) {
            named.entry(id).or_default().insert(test);
        }
    }
    Ok(named)
}

impl Row<'_> {
    fn tests(&self, named: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
        [self.id].iter().chain(&self.same).filter_map(|id| named.get(*id)).flatten().cloned().collect()
    }

    /// What is wrong with the row, given its tests.
    fn fault(&self, tests: &BTreeSet<String>) -> Option<String> {
        let why = match (tests.is_empty(), self.reason) {
            (true, None) => "no test names it, and no reason why",
            (false, Some(_)) => "tests name it, and yet a reason is given why none does",
            _ => return None,
        };
        Some(format!("{} ({}): {why}", self.id, self.title))
    }
}

fn told(tests: &BTreeSet<String>, reason: Option<&str>) -> String {
    if tests.is_empty() {
        return format!("NO TEST: {}", reason.unwrap_or("no reason given"));
    }
    let mut text = tests.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if tests.len() > SHOWN {
        text.push_str(&format!(" and {} more", tests.len() - SHOWN));
    }
    text
}

/// Rows, and headings as errors; other comments are left out.
fn rows(table: &str) -> impl Iterator<Item = Result<Row<'_>, &str>> {
    table.lines().filter_map(|line| {
        if let Some(heading) = line.strip_prefix("## ") {
            return Some(Err(heading));
        }
        let (id, rest) = line.split_once(' ').filter(|_| !line.starts_with('#'))?;
        let (title, reason) =
            rest.split_once(" | ").map_or((rest, None), |(title, why)| (title, Some(why.trim())));
        let (title, same) = title.split_once(" = ").unwrap_or((title, ""));
        Some(Ok(Row { id, title: title.trim(), same: same.split_whitespace().collect(), reason }))
    })
}

/// Every id that a test of this file names, with the test's name.
fn mentions(file: &Path, text: &str, ids: &BTreeSet<&str>) -> Vec<(String, String)> {
    let Some((suite, module, mut inside)) = place(file) else { return Vec::new() };
    let mut found = Vec::new();
    let (mut current, mut waiting) = (String::new(), Vec::new());
    let label = |function: &str| format!("{suite} {module}{function}");
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        // Of a module in a file of its own this one has nothing.
        inside |= line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with('{'));
        if !inside {
            continue;
        }
        let here: Vec<String> = said(line).flat_map(|text| ids_in(text, ids)).collect();
        if let Some(function) = function(line) {
            current = format!("::{function}");
            // Functions are named in small letters.
            waiting.extend(ids_in(&function.to_uppercase(), ids));
            found.extend(waiting.drain(..).chain(here).map(|id| (id, label(&current))));
        } else if line.starts_with("//") || line.starts_with("#[") {
            // Above a function it speaks of that function; elsewhere of the one that it stands in.
            waiting.extend(here);
        } else {
            found.extend(waiting.drain(..).chain(here).map(|id| (id, label(&current))));
        }
    }
    found
}

/// Suite and module of a file with tests, and whether all of it is tests.
fn place(file: &Path) -> Option<(&'static str, String, bool)> {
    let name = file.to_str()?.strip_suffix(".rs")?;
    if let Some((suite, module)) = name.strip_prefix("tests/tests/").and_then(|rest| rest.split_once('/')) {
        let suite = super::Suite::ALL.into_iter().find(|known| known.name() == suite)?;
        return Some((suite.name(), module.into(), true));
    }
    if let Some(module) = name.strip_prefix("tests/src/oracle/") {
        return Some(("oracle", module.into(), true));
    }
    if name.starts_with("xtask/") {
        return None;
    }
    let stem = name.rsplit('/').next().unwrap_or(name);
    let whole = stem.ends_with("tests") || stem.starts_with("tests_") || name.contains("/tests/");
    let module = name.replace("proxy-", "").replace("/src/", " ");
    Some(("host", module, whole))
}

/// What a line says to people: its comment or its strings. Code has names of its own that look like ids.
fn said(line: &str) -> impl Iterator<Item = &str> {
    let (code, comment) = line.split_once("//").unwrap_or((line, ""));
    code.split('"').skip(1).step_by(2).chain([comment])
}

/// The name in a line that begins a function.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let heading =
        before.split_whitespace().all(|word| word.starts_with("pub") || word == "async" || word == "const");
    let name = after.split(['(', '<']).next()?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (heading && is_name && after.len() > name.len()).then_some(name)
}

/// Known ids in a line: `B11` as it stands, `P-60` also as `P60`.
fn ids_in(line: &str, ids: &BTreeSet<&str>) -> Vec<String> {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let mut found = Vec::new();
    for word in words {
        let with_hyphen =
            || format!("{}-{}", word.get(..1).unwrap_or_default(), word.get(1..).unwrap_or_default());
        if ids.contains(word) {
            found.push(word.to_owned());
        } else if word.starts_with(['P', 'S']) && ids.contains(with_hyphen().as_str()) {
            found.push(with_hyphen());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = ["B1", "B11", "P-60"];

    #[test]
    fn rows_of_the_table() {
        let table = "# note\n\n## Packets\nB11 replies = P-30 B1\nP-60 one port | nobody looked\n";
        let expected = [
            Err("Packets"),
            Ok(Row { id: "B11", title: "replies", same: vec!["P-30", "B1"], reason: None }),
            Ok(Row { id: "P-60", title: "one port", same: vec![], reason: Some("nobody looked") }),
        ];
        assert_eq!(rows(table).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn ids_in_words() {
        let table: [(&str, &[&str]); 6] = [
            ("/// B11, and P-60.", &["B11", "P-60"]),
            ("P60_three_ways", &["P-60"]),
            ("\"told_P-60::v4\"", &["P-60"]),
            ("0xB1 B111 XB1 P-600", &[]),
            ("fn b11()", &[]),
            ("(B1)", &["B1"]),
        ];
        let ids = IDS.into();
        for (line, expected) in table {
            assert_eq!(ids_in(line, &ids), expected, "{line}");
        }
    }

    #[test]
    fn mentions_belong_to_tests() {
        let ids = IDS.into();
        let names = |file: &str, text: &str| -> Vec<String> {
            mentions(Path::new(file), text, &ids)
                .into_iter()
                .map(|(id, test)| format!("{id} {test}"))
                .collect()
        };
        let story = "/// B11\n#[test]\nfn replies() {\n    // P-60\n    ask();\n}\n";
        assert_eq!(
            names("tests/tests/net/ports.rs", story),
            ["B11 net ports::replies", "P-60 net ports::replies"]
        );
        let unit = "/// B11\nfn work() {}\n#[cfg(test)]\nmod tests {\n    /// B1\n    fn works() {}\n}\n";
        assert_eq!(names("proxy-common/src/path.rs", unit), ["B1 host common path::works"]);
        let elsewhere = "#[cfg(test)]\nmod tests;\n/// B11\nfn work() {}\n";
        assert_eq!(names("proxy-common/src/path.rs", elsewhere), [""; 0]);
        assert_eq!(names("proxy-common/src/tests_path.rs", elsewhere), ["B11 host common tests_path::work"]);
        let code = "fn works() {\n    ask(B1, \"as P-60 has it\"); // B11\n}\n";
        assert_eq!(
            names("tests/tests/net/ports.rs", code),
            ["P-60 net ports::works", "B11 net ports::works"]
        );
        assert_eq!(names("xtask/src/x.rs", unit), [""; 0]);
    }

    /// The workspace as it is.
    #[test]
    fn every_row_has_tests_or_a_reason() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let table = include_str!("../../../tests/rows.txt");
        let named = named(&root, table).expect("the sources can be read");
        let faults: Vec<_> =
            rows(table).filter_map(Result::ok).filter_map(|row| row.fault(&row.tests(&named))).collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    #[test]
    fn faults_of_rows() {
        let row = |reason| Row { id: "B1", title: "one", same: vec!["P-60"], reason };
        let test = |id: &str| BTreeMap::from([(id.to_owned(), BTreeSet::from(["net a::b".to_owned()]))]);
        let fault = |row: Row, named| row.fault(&row.tests(&named));
        assert!(fault(row(None), test("B11")).is_some_and(|why| why.contains("no reason")));
        assert!(fault(row(Some("why")), test("P-60")).is_some_and(|why| why.contains("and yet")));
        assert_eq!(fault(row(None), test("P-60")), None);
        assert_eq!(fault(row(Some("why")), test("B11")), None);
    }

    #[test]
    fn every_row_of_the_table_is_told_once() {
        let table = include_str!("../../../tests/rows.txt");
        let ids: BTreeSet<_> = rows(table).filter_map(Result::ok).map(|row| row.id).collect();
        let mut seen = BTreeSet::new();
        for row in rows(table).filter_map(Result::ok) {
            assert!(row.same.iter().all(|id| ids.contains(id)), "{}: same as {:?}", row.id, row.same);
            assert!(seen.insert(row.id), "{} stands there twice", row.id);
            assert!(!row.title.is_empty() && row.reason != Some(""), "{}", row.id);
        }
    }
}
