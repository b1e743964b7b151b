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
    passed: usize,
    failures: Vec<String>,
    skips: Vec<(String, String)>,
    /// Tests of this binary that the harness calls passed.
    good: HashSet<String>,
    /// Binaries that came to their end.
    binaries: usize,
    section: Section,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// One line per test.
    #[default]
    Verdicts,
    /// Output of tests that passed: only skips in it are of interest.
    Successes,
    /// Output of tests that failed, and their list.
    Failures,
}

impl Reader {
    /// Takes in one line; whether it is worth showing.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim_start().strip_prefix("skipped: ") {
            return self.self_skip(skip);
        }
        match line {
            "successes:" => self.section = Section::Successes,
            "failures:" => self.section = Section::Failures,
            _ if line.starts_with("test result: ") => self.end_of_binary(),
            _ if line.starts_with("running ") => self.section = Section::Verdicts,
            _ if self.section == Section::Verdicts => self.verdict(line),
            _ => (),
        }
        self.section != Section::Successes
    }

    /// A test that passed because it found that it could not run here says so on a line of its own.
    fn self_skip(&mut self, skip: &str) -> bool {
        let (name, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
        // A part of a test may be skipped under a name of its own: then the test itself still counts.
        if self.good.remove(name) {
            self.passed -= 1;
        }
        self.skips.push((name.into(), reason.into()));
        true
    }

    fn verdict(&mut self, line: &str) {
        let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        let name = name.trim_end_matches(" - should panic");
        match verdict {
            "ok" => {
                self.passed += 1;
                self.good.insert(name.into());
            }
            "FAILED" => self.failures.push(name.into()),
            "ignored" => self.skips.push((name.into(), "ignored".into())),
            _ => {
                if let Some(reason) = verdict.strip_prefix("ignored, ") {
                    self.skips.push((name.into(), reason.into()));
                }
            }
        }
    }

    fn end_of_binary(&mut self) {
        self.binaries += 1;
        self.good.clear();
        self.section = Section::Verdicts;
    }

    /// What the suite comes to, given whether cargo was content.
    pub fn finish(self, suite: &str, content: bool) -> Tally {
        let named = self.failures.into_iter().map(|name| format!("{suite}: {name}"));
        let mut tally = Tally { passed: self.passed, failures: named.collect(), skips: self.skips };
        if !content && tally.failures.is_empty() {
            tally.fail(format!("{suite}: did not build or did not come to its end: see its messages above"));
        } else if self.binaries == 0 || tally.passed + tally.failures.len() + tally.skips.len() == 0 {
            tally.fail(format!("{suite}: ran no test"));
        }
        tally
    }
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
                "a part skipped under its own name leaves its test counted",
                "running 1 test\ntest table ... ok\nsuccesses:\n---- table stdout ----\nskipped: table/sctp: no module\n\
                 test result: ok. 1 passed; 0 failed\n",
                true,
                "skipped: table/sctp: no module\n1 passed, 0 failed, 1 skipped",
            ),
            (
                "a crash after some tests",
                "running 9 tests\ntest a ... ok\n",
                false,
                "failed: s: did not build or did not come to its end: see its messages above\n\
                 1 passed, 1 failed, 0 skipped",
            ),
            (
                "nothing built",
                "",
                false,
                "failed: s: did not build or did not come to its end: see its messages above\n\
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
