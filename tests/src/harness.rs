//! A test harness that speaks libtest's language, for suites whose stories share something dear: a bed of namespaces,
//! loaded programs. Stories of a group run one after the other; groups run in parallel.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};

/// An error that means: this story cannot run on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

type Run<B> = Box<dyn FnOnce(&mut B) -> Result<()> + Send>;

/// One named behaviour, shown on a bed.
pub struct Story<B> {
    pub name: String,
    run: Run<B>,
}

impl<B> Story<B> {
    pub fn new(name: impl Into<String>, run: impl FnOnce(&mut B) -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Stories that share a bed.
pub struct Group<B> {
    pub name: String,
    /// Makes the bed.
    pub bed: Box<dyn FnOnce() -> Result<B> + Send>,
    /// Asked after each story: did anything happen that must never happen?
    pub oracle: fn(&mut B) -> Result<()>,
    pub stories: Vec<Story<B>>,
}

enum Report {
    Ok,
    Failed(String),
    Ignored(String),
}

#[derive(Default)]
struct Options {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: Option<usize>,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = || value.clone().or_else(|| arguments.next());
            match flag.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--skip" => options.skips.extend(value()),
                "--test-threads" => options.threads = value().and_then(|n| n.parse().ok()),
                // Cargo and people pass libtest's flags; these change nothing here.
                "--nocapture" | "--no-capture" | "--include-ignored" | "--ignored" | "-q" | "--quiet"
                | "--show-output" => {}
                "--format" | "--color" | "-Z" | "--logfile" => drop(value()),
                other if other.starts_with('-') => bail!("unknown flag {other}"),
                _ => options.filters.push(flag),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        let hit =
            |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skips.iter().any(hit)
    }
}

/// Runs what the command line asks for and prints the summary. A story's full name is `suite::group::story`.
pub fn main<B>(suite: &str, mut groups: Vec<Group<B>>) -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    for group in &mut groups {
        group.name = format!("{suite}::{}", group.name);
    }
    let total: usize = groups.iter().map(|group| group.stories.len()).sum();
    for group in &mut groups {
        let name = group.name.clone();
        group.stories.retain(|story| options.wants(&full(&name, &story.name)));
    }
    groups.retain(|group| !group.stories.is_empty());
    let selected: usize = groups.iter().map(|group| group.stories.len()).sum();
    if options.list {
        let names = groups.iter().flat_map(|g| g.stories.iter().map(|s| full(&g.name, &s.name)));
        names.for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {selected} tests");
    let start = Instant::now();
    let reports = run_all(groups, options.threads.unwrap_or(2));
    summary(&reports, total - selected, start)
}

fn full(group: &str, story: &str) -> String {
    format!("{group}::{story}")
}

fn run_all<B>(groups: Vec<Group<B>>, threads: usize) -> Vec<(String, Report)> {
    let queue = Mutex::new(VecDeque::from(groups));
    let reports = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(group) = next() {
                    run_group(group, &|name, report| {
                        let line = match &report {
                            Report::Ok => "ok".to_owned(),
                            Report::Failed(_) => "FAILED".to_owned(),
                            Report::Ignored(why) => format!("ignored\nskipped: {name}: {why}"),
                        };
                        println!("test {name} ... {line}");
                        reports.lock().unwrap_or_else(PoisonError::into_inner).push((name, report));
                    });
                }
            });
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_group<B>(group: Group<B>, report: &dyn Fn(String, Report)) {
    let Group { name, bed, oracle, stories } = group;
    let ready = guarded(|| {
        let mut bed = bed()?;
        oracle(&mut bed)?;
        Ok(bed)
    });
    let mut bed = match ready {
        Ok(bed) => bed,
        Err(error) => {
            let mut told = format!("the bed could not be set up: {error:#}");
            for story in stories {
                report(full(&name, &story.name), Report::Failed(told));
                told = "the bed could not be set up, see the group's first story".into();
            }
            return;
        }
    };
    for story in stories {
        let full_name = full(&name, &story.name);
        let outcome = guarded(|| (story.run)(&mut bed));
        let seen = guarded(|| oracle(&mut bed));
        let verdict = match (outcome, seen) {
            (Ok(()), Ok(())) => Report::Ok,
            (Ok(()), Err(seen)) => Report::Failed(format!("{seen:#}")),
            (Err(error), Ok(())) => match error.downcast_ref::<Skip>() {
                Some(skip) => Report::Ignored(skip.to_string()),
                None => Report::Failed(format!("{error:#}")),
            },
            (Err(error), Err(seen)) => Report::Failed(format!("{error:#}\nand: {seen:#}")),
        };
        report(full_name, verdict);
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            bail!("panicked: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?"))
        }
    }
}

fn summary(reports: &[(String, Report)], filtered: usize, start: Instant) -> ExitCode {
    let failed: Vec<_> = reports
        .iter()
        .filter_map(|(name, report)| match report {
            Report::Failed(why) => Some((name, why)),
            _ => None,
        })
        .collect();
    let ignored = reports.iter().filter(|(_, report)| matches!(report, Report::Ignored(_))).count();
    if !failed.is_empty() {
        println!("\nfailures:");
        failed.iter().for_each(|(name, why)| println!("\n---- {name} stdout ----\n{why}"));
        println!("\nfailures:");
        failed.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; {ignored} ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        reports.len() - failed.len() - ignored,
        failed.len(),
        start.elapsed().as_secs_f64(),
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
