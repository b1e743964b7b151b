//! What may be asked for: arguments to [`Command`], without touching the machine.

use std::fmt;

use crate::fuzz::{self, Fuzz};
use crate::image::Wanted;
use crate::suites::Suite;

/// Printed by `cargo xtask --help`.
pub const HELP: &str = "\
cargo xtask COMMAND

  setup [--check] [--api]   install what this machine lacks (packages, eBPF compiler, linker); --check only tells;
                            --api also what the suites `api` and `oracle` need (Go, etcd, kube-apiserver,
                            kube-proxy: minutes, once)
  build                     target/release/sluice, one file with the eBPF object inside
  demo [--api]              the main job in a sandbox of network namespaces, explained as it goes;
                            --api puts a real kube-apiserver behind it
  test [SUITE...]           all tests, or suites of: host packet net api oracle cluster kernels
       [--coverage]         also print line coverage of each crate's files, and which tests name which behaviours
       [--seed N]           repeat a random run
       [--steps N]          length of random runs
  bench [SCENARIO...]       scenarios: program control memory start flood scale forwarding crr rr1 rr udp
       [--quick] [--json FILE] [--svg DIR]
  fuzz [TARGET...] [--seconds N]   libFuzzer on all targets, or on: packet manifest watch maps; a minute each
  lint                      formatting, clippy for host and eBPF, sources, object, dependencies
  image [--name NAME] [--output FILE]   the container image as an OCI archive, no engine needed

Commands set up what they need on their own; as root, on Debian or Ubuntu. Exit status: 0 done, 1 failed, 2 wrong use.
";

/// One parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Setup {
        check: bool,
        api: bool,
    },
    Build,
    /// Arguments go to the demo unread.
    Demo {
        args: Vec<String>,
    },
    Bench(Bench),
    Test(Selection),
    Fuzz(Fuzz),
    Lint,
    Image(Wanted),
}

/// What `bench` shall measure; no scenario means all that exist.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bench {
    pub scenarios: Vec<&'static str>,
    pub quick: bool,
    pub json: Option<String>,
    pub svg: Option<String>,
}

/// What `test` shall run; no suite means all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub suites: Vec<Suite>,
    pub coverage: bool,
    pub seed: Option<u64>,
    pub steps: Option<u64>,
}

/// A command line that says nothing we can do; exit status 2.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongUse(String);

impl fmt::Display for WrongUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; `cargo xtask --help` lists what there is", self.0)
    }
}

/// All scenarios, as the bench itself has them.
const SCENARIOS: [&str; 11] =
    ["program", "control", "memory", "start", "flood", "scale", "forwarding", "crr", "rr1", "rr", "udp"];

pub fn parse(args: &[String]) -> Result<Command, WrongUse> {
    let mut words = args.iter().map(String::as_str);
    let command = words.next().unwrap_or("--help");
    let rest: Vec<&str> = words.collect();
    if command != "demo" && rest.iter().any(|word| matches!(*word, "--help" | "-h")) {
        return Ok(Command::Help);
    }
    match command {
        "--help" | "-h" | "help" => Ok(Command::Help),
        "setup" => {
            let [check, api] = switches("setup", &rest, ["--check", "--api"])?;
            Ok(Command::Setup { check, api })
        }
        "build" => switches("build", &rest, []).map(|[]| Command::Build),
        "lint" => switches("lint", &rest, []).map(|[]| Command::Lint),
        "demo" => Ok(Command::Demo { args: rest.into_iter().map(String::from).collect() }),
        "test" => selection(&rest).map(Command::Test),
        "bench" => bench(&rest).map(Command::Bench),
        "fuzz" => fuzzing(&rest).map(Command::Fuzz),
        "image" => image(&rest).map(Command::Image),
        other => Err(WrongUse(format!("{other}: no such command"))),
    }
}

fn switches<const N: usize>(command: &str, words: &[&str], known: [&str; N]) -> Result<[bool; N], WrongUse> {
    match words.iter().find(|word| !known.contains(word)) {
        Some(word) => Err(WrongUse(format!("{command} {word}: no such argument"))),
        None => Ok(known.map(|switch| words.contains(&switch))),
    }
}

fn selection(words: &[&str]) -> Result<Selection, WrongUse> {
    let mut selection = Selection::default();
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "--coverage" => selection.coverage = true,
            "--seed" => selection.seed = Some(number("test --seed", words.next())?),
            "--steps" => selection.steps = Some(number("test --steps", words.next())?),
            name => {
                let suite = Suite::ALL.into_iter().find(|suite| suite.name() == name);
                let suite = suite.ok_or_else(|| WrongUse(format!("test {name}: no such suite or option")))?;
                if let Some(why) = suite.absent() {
                    return Err(WrongUse(format!("test {name}: {why}")));
                }
                selection.suites.push(suite);
            }
        }
    }
    Ok(selection)
}

fn bench(words: &[&str]) -> Result<Bench, WrongUse> {
    let mut bench = Bench::default();
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "--quick" => bench.quick = true,
            "--json" | "--svg" => {
                let path = words.next().filter(|path| !path.starts_with("--"));
                let path = path.ok_or_else(|| WrongUse(format!("bench {word}: needs a name")))?;
                let output = if word == "--json" { &mut bench.json } else { &mut bench.svg };
                *output = Some(String::from(*path));
            }
            name => match SCENARIOS.iter().find(|scenario| **scenario == name) {
                Some(scenario) => bench.scenarios.push(scenario),
                None => return Err(WrongUse(format!("bench {name}: no such scenario or option"))),
            },
        }
    }
    Ok(bench)
}

fn fuzzing(words: &[&str]) -> Result<Fuzz, WrongUse> {
    let mut wanted = Fuzz { targets: Vec::new(), seconds: 60 };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "--seconds" => wanted.seconds = number("fuzz --seconds", words.next())?,
            name => {
                let target = fuzz::TARGETS.into_iter().find(|target| *target == name);
                let target =
                    target.ok_or_else(|| WrongUse(format!("fuzz {name}: no such target or option")))?;
                wanted.targets.push(target);
            }
        }
    }
    Ok(wanted)
}

fn image(words: &[&str]) -> Result<Wanted, WrongUse> {
    let mut wanted = Wanted::default();
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut value = || {
            let value = words.next().filter(|value| !value.starts_with("--"));
            value.copied().ok_or_else(|| WrongUse(format!("image {word}: needs a value")))
        };
        match word {
            "--name" => {
                let name = value()?;
                let allowed = |c: char| c.is_ascii_alphanumeric() || "./:_-".contains(c);
                if !name.chars().all(allowed) {
                    return Err(WrongUse(format!(
                        "image --name {name}: not a name such as registry/sluice:1"
                    )));
                }
                wanted.name = Some(name.into());
            }
            "--output" => wanted.output = Some(value()?.into()),
            _ => return Err(WrongUse(format!("image {word}: no such option"))),
        }
    }
    Ok(wanted)
}

fn number(what: &str, word: Option<&&str>) -> Result<u64, WrongUse> {
    let word = word.ok_or_else(|| WrongUse(format!("{what}: needs a number")))?;
    word.parse().map_err(|_| WrongUse(format!("{what} {word}: not a number from 0 to {}", u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn command_lines_that_mean_something() {
        let select = |suites: &[Suite]| Selection { suites: suites.to_vec(), ..Selection::default() };
        let table = [
            ("", Command::Help),
            ("--help", Command::Help),
            ("test --help", Command::Help),
            ("setup", Command::Setup { check: false, api: false }),
            ("setup --api --check", Command::Setup { check: true, api: true }),
            ("build", Command::Build),
            ("lint", Command::Lint),
            ("fuzz", Command::Fuzz(Fuzz { targets: vec![], seconds: 60 })),
            (
                "fuzz maps --seconds 600 packet",
                Command::Fuzz(Fuzz { targets: vec!["maps", "packet"], seconds: 600 }),
            ),
            ("image", Command::Image(Wanted::default())),
            (
                "image --output a.tar --name r/a:1",
                Command::Image(Wanted { name: Some("r/a:1".into()), output: Some("a.tar".into()) }),
            ),
            ("demo --api --keep", Command::Demo { args: words("--api --keep") }),
            ("test", Command::Test(Selection::default())),
            ("test cluster", Command::Test(select(&[Suite::Cluster]))),
            ("test host net", Command::Test(select(&[Suite::Host, Suite::Net]))),
            (
                "test packet --seed 7 --steps 900 --coverage",
                Command::Test(Selection {
                    suites: vec![Suite::Packet],
                    coverage: true,
                    seed: Some(7),
                    steps: Some(900),
                }),
            ),
            ("bench", Command::Bench(Bench::default())),
            (
                "bench control --quick --json out.json --svg plots",
                Command::Bench(Bench {
                    scenarios: vec!["control"],
                    quick: true,
                    json: Some("out.json".into()),
                    svg: Some("plots".into()),
                }),
            ),
        ];
        for (line, expected) in table {
            assert_eq!(parse(&words(line)), Ok(expected), "{line}");
        }
    }

    #[test]
    fn command_lines_that_are_refused_name_the_word() {
        let table = [
            ("tset", "tset: no such command"),
            ("setup --now", "setup --now: no such argument"),
            ("build sluice", "build sluice: no such argument"),
            ("fuzz pocket", "fuzz pocket: no such target or option"),
            ("image now", "image now: no such option"),
            ("image --name a\"b", "image --name a\"b: not a name"),
            ("image --name", "image --name: needs a value"),
            ("test nets", "test nets: no such suite or option"),
            ("test --seed", "test --seed: needs a number"),
            ("test --seed x", "test --seed x: not a number"),
            ("test --steps -1", "test --steps -1: not a number"),
            ("test host kernels", "test kernels: not in this version"),
            ("bench fast", "bench fast: no such scenario or option"),
            ("bench --json", "bench --json: needs a name"),
            ("bench --json --quick", "bench --json: needs a name"),
        ];
        for (line, expected) in table {
            let wrong = parse(&words(line)).expect_err(line).to_string();
            assert!(wrong.starts_with(expected), "{line}: {wrong}");
        }
    }
}
