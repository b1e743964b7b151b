//! Reads what cargo's test harness prints, and adds it up.

use std::collections::HashSet;
use std::fmt;

/// How many tests passed, which failed, which were skipped and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: usize,
    failures: Vec<String>,
    skips: Vec<(String, String)>,
}

impl Tally {
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skips.push((name.into(), reason.into()));
    }

    pub fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }
}

/// One line per failure, one per skip with its reason, and the closing line that scripts read.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in &self.failures {
            writeln!(f, "failed: {what}")?;
        }
        for (name, reason) in &self.skips {
            writeln!(f, "skipped: {name}: {reason}")?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skips.len())
    }
}

/// Reads one `cargo test` line by line.
#[derive(Debug, Default)]
pub struct Reader {
    done: Tally,
    /// Test programs that began, and those that came to their end.
    begun: usize,
    ended: usize,
    running: Binary,
    section: Section,
}

/// libtest's word for a test that is not run, and all that it says where no reason was written.
const IGNORED: &str = "ignored";

/// What the binary that is running has said so far.
#[derive(Debug, Default)]
struct Binary {
    good: HashSet<String>,
    failures: Vec<String>,
    skips: Vec<(String, String)>,
    /// Tests that the harness calls passed and that say of themselves that they did not run.
    hollow: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// One line per test.
    #[default]
    Verdicts,
    /// Output of tests that passed, now of the one named: only skips in it are of interest.
    Successes(String),
    /// Output of tests that failed, and their list.
    Failures,
}

impl Reader {
    /// Takes in one line; whether it is worth showing.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim_start().strip_prefix("skipped: ") {
            self.self_skip(skip);
            return true;
        }
        match line {
            "successes:" => self.section = Section::Successes(String::new()),
            "failures:" => self.section = Section::Failures,
            _ if line.starts_with("test result: ") => self.end_of_binary(line),
            _ if is_beginning(line) => self.begun += 1,
            _ if self.section == Section::Verdicts => self.running.verdict(line),
            _ => (),
        }
        let Section::Successes(test) = &mut self.section else { return true };
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            *test = name.into();
        }
        false
    }

    /// A test that passed because it found that it could not run here says so on a line of its own.
    fn self_skip(&mut self, skip: &str) {
        let (name, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
        let speaker = matches!(&self.section, Section::Successes(test) if test == name);
        let first = self.running.skip(name, reason);
        // A part of a test may be skipped under a name of its own: then the test itself still counts.
        if first && (self.running.good.remove(name) || speaker) {
            self.running.hollow += 1;
        }
    }

    /// The harness's own sums count: lines of single tests may be torn by output of child processes.
    fn end_of_binary(&mut self, line: &str) {
        let binary = std::mem::take(&mut self.running);
        let passed = sum(line, "passed").unwrap_or(binary.good.len() + binary.hollow);
        self.done.passed += passed.saturating_sub(binary.hollow);
        let unnamed = sum(line, "failed").unwrap_or(0).saturating_sub(binary.failures.len());
        self.done.failures.extend(binary.failures);
        self.done.failures.extend((0..unnamed).map(|_| "a test whose name was lost in other output".into()));
        self.done.skips.extend(binary.skips);
        self.ended += 1;
        self.section = Section::Verdicts;
    }

    /// What the suite comes to, given whether cargo was content.
    pub fn finish(mut self, suite: &str, content: bool) -> Tally {
        // What is left belongs to a binary that did not come to its end.
        let Binary { good, failures, skips, .. } = self.running;
        self.done.add(Tally { passed: good.len(), failures, skips });
        let mut tally = self.done;
        tally.failures.iter_mut().for_each(|name| *name = format!("{suite}: {name}"));
        if self.begun > self.ended {
            tally.fail(format!("{suite}: a test program did not come to its end: see its messages above"));
        } else if !content && tally.failures.is_empty() {
            tally.fail(format!("{suite}: did not build: see the messages above"));
        } else if self.ended == 0 || tally.passed + tally.failures.len() + tally.skips.len() == 0 {
            tally.fail(format!("{suite}: ran no test"));
        }
        tally
    }
}

impl Binary {
    fn verdict(&mut self, line: &str) {
        let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        let name = name.trim_end_matches(" - should panic");
        match verdict {
            "ok" => _ = self.good.insert(name.into()),
            "FAILED" => self.failures.push(name.into()),
            IGNORED => _ = self.skip(name, IGNORED),
            _ => {
                if let Some(reason) = verdict.strip_prefix("ignored, ") {
                    self.skip(name, reason);
                }
            }
        }
    }

    /// Notes a skip; `false` if that name was noted before: a harness may say `ignored` and the test why.
    fn skip(&mut self, name: &str, reason: &str) -> bool {
        let known = self.skips.iter_mut().find(|(known, _)| known == name);
        match known {
            Some((_, known)) if *known == IGNORED => reason.clone_into(known),
            Some(_) => (),
            None => {
                self.skips.push((name.into(), reason.into()));
                return true;
            }
        }
        false
    }
}

/// `running 12 tests`, in which a test program says that it begins.
fn is_beginning(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    matches!(words[..], ["running", count, "test" | "tests"] if count.parse::<usize>().is_ok())
}

/// The number before a word in `test result: ok. 2 passed; 0 failed; ...`.
fn sum(line: &str, word: &str) -> Option<usize> {
    let words: Vec<&str> = line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|candidate| *candidate == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, content: bool) -> String {
        let mut reader = Reader::default();
        for line in output.lines() {
            reader.read(line);
        }
        reader.finish("s", content).to_string()
    }

    #[test]
    fn outputs_are_added_up() {
        let table = [
            (
                "one binary, all pass",
                "\nrunning 2 tests\ntest a ... ok\ntest m::b ... ok\n\ntest result: ok. 2 passed; 0 failed\n",
                true,
                "2 passed, 0 failed, 0 skipped",
            ),
            (
                "two binaries, one failure",
                "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\ntest c ... ok\n\n\
                 failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\nrunning 1 test\ntest d ... ok\n\
                 test result: ok. 1 passed; 0 failed\n",
                false,
                "failed: s: b\n2 passed, 1 failed, 0 skipped",
            ),
            (
                "ignored tests are skips, with the reason where there is one",
                "running 3 tests\ntest a ... ignored\ntest b ... ignored, no nft\ntest c - should panic ... ok\n\
                 test result: ok. 1 passed; 0 failed; 2 ignored\n",
                true,
                "skipped: a: ignored\nskipped: b: no nft\n1 passed, 0 failed, 2 skipped",
            ),
            (
                "a test that skips itself does not count as passed",
                "running 2 tests\ntest m::a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- m::a stdout ----\n\
                 skipped: m::a: no cgroup v2: none mounted\n\n\nsuccesses:\n    b\n    m::a\n\n\
                 test result: ok. 2 passed; 0 failed\n",
                true,
                "skipped: m::a: no cgroup v2: none mounted\n1 passed, 0 failed, 1 skipped",
            ),
            (
                "a harness that says ignored and then why means one skip",
                "running 2 tests\ntest a ... ok\ntest b ... ignored\nskipped: b: no bridge\n\
                 test result: ok. 1 passed; 0 failed; 1 ignored\n",
                true,
                "skipped: b: no bridge\n1 passed, 0 failed, 1 skipped",
            ),
            (
                "a part skipped under its own name leaves its test counted",
                "running 1 test\ntest table ... ok\nsuccesses:\n---- table stdout ----\nskipped: table/sctp: no module\n\
                 test result: ok. 1 passed; 0 failed\n",
                true,
                "skipped: table/sctp: no module\n1 passed, 0 failed, 1 skipped",
            ),
            (
                "verdicts torn by child processes still count",
                "running 3 tests\ntest a ... ok\ntest b ... noise\nok\ntest c ... noise\nFAILED\n\nsuccesses:\n\n\
                 ---- b stdout ----\nskipped: b: no device\n\nfailures:\n    c\n\n\
                 test result: FAILED. 2 passed; 1 failed; 0 ignored\n",
                false,
                "failed: s: a test whose name was lost in other output\nskipped: b: no device\n\
                 1 passed, 1 failed, 1 skipped",
            ),
            (
                "a crash after a failure",
                "running 9 tests\ntest a ... ok\ntest b ... FAILED\n",
                false,
                "failed: s: b\nfailed: s: a test program did not come to its end: see its messages above\n\
                 1 passed, 2 failed, 0 skipped",
            ),
            (
                "a crash after some tests",
                "running 9 tests\ntest a ... ok\n",
                false,
                "failed: s: a test program did not come to its end: see its messages above\n\
                 1 passed, 1 failed, 0 skipped",
            ),
            (
                "nothing built",
                "",
                false,
                "failed: s: did not build: see the messages above\n\
                 0 passed, 1 failed, 0 skipped",
            ),
            (
                "no test at all",
                "running 0 tests\n\ntest result: ok. 0 passed; 0 failed\n",
                true,
                "failed: s: ran no test\n0 passed, 1 failed, 0 skipped",
            ),
        ];
        for (name, output, content, expected) in table {
            assert_eq!(read(output, content), expected, "{name}");
        }
    }

    #[test]
    fn output_of_passed_tests_is_hidden_but_for_skips() {
        let table = [
            ("test a ... ok", true),
            ("successes:", false),
            ("---- a stdout ----", false),
            ("skipped: a: why", true),
            ("test b ... FAILED", false),
            ("failures:", true),
            ("---- c stdout ----", true),
            ("test result: ok. 1 passed", true),
        ];
        let mut reader = Reader::default();
        for (line, shown) in table {
            assert_eq!(reader.read(line), shown, "{line}");
        }
    }

    #[test]
    fn tallies_add() {
        let mut total = Tally { passed: 1, ..Tally::default() };
        total.skip("oracle", "not in this version");
        total.add(Tally {
            passed: 2,
            failures: vec!["net: a".into()],
            skips: vec![("b".into(), "why".into())],
        });
        assert_eq!(total.failed(), 1);
        assert_eq!(
            total.to_string(),
            "failed: net: a\nskipped: oracle: not in this version\nskipped: b: why\n3 passed, 1 failed, 2 skipped"
        );
    }
}
