//! `cargo xtask test`: runs suites and adds them up.

pub mod coverage;
mod libtest;
mod rows;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cli::Selection;
use crate::image;
use crate::setup::{self, Group};
use crate::shell::{self, Workspace};
use coverage::Coverage;
use libtest::{Reader, Tally};

/// A set of tests with one kind of need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Everything that runs as a plain process: unit and property tests.
    Host,
    /// Packet stories in the kernel, by test-run.
    Packet,
    /// Real traffic in network namespaces.
    Net,
    /// A real API server behind the agent.
    Api,
    /// Upstream's kube-proxy beside Sluice.
    Oracle,
    /// A whole cluster.
    Cluster,
    /// Other kernels.
    Kernels,
}

impl Suite {
    pub const ALL: [Self; 7] =
        [Self::Host, Self::Packet, Self::Net, Self::Api, Self::Oracle, Self::Cluster, Self::Kernels];

    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Packet => "packet",
            Self::Net => "net",
            Self::Api => "api",
            Self::Oracle => "oracle",
            Self::Cluster => "cluster",
            Self::Kernels => "kernels",
        }
    }

    /// Why the suite cannot run anywhere, if so.
    pub fn absent(self) -> Option<&'static str> {
        (self == Self::Kernels).then_some("not in this version")
    }

    /// Why the suite cannot run here, if so.
    fn hindered(self) -> Option<&'static str> {
        let given = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if self == Self::Cluster && !(given("SLUICE_KUBECONFIG") && given("SLUICE_LOAD_IMAGE")) {
            return Some(
                "no cluster is given: SLUICE_KUBECONFIG and SLUICE_LOAD_IMAGE, a command that loads an image archive into its nodes",
            );
        }
        if self.needs_root() && !shell::is_root() {
            return Some("needs root: it makes network namespaces and loads programs");
        }
        None
    }

    /// Why the suite runs only when it is named, if so.
    fn waits(self) -> Option<&'static str> {
        match self {
            Self::Api => Some("builds an API server on first use; runs when it is named"),
            Self::Oracle => Some("takes a quarter of an hour; runs when it is named"),
            _ => None,
        }
    }

    fn needs(self) -> &'static [Group] {
        match self {
            Self::Api => &[Group::Build, Group::Laboratory, Group::Api],
            Self::Oracle => &[Group::Build, Group::Laboratory, Group::Api, Group::Oracle],
            Self::Host | Self::Cluster => &[Group::Build],
            _ => &[Group::Build, Group::Laboratory],
        }
    }

    fn needs_root(self) -> bool {
        !matches!(self, Self::Host | Self::Cluster)
    }

    /// Whether it runs under libtest; the others have a harness of their own, which shows what it prints.
    fn captures_output(self) -> bool {
        self == Self::Host
    }

    /// One list of arguments for each `cargo test` that the suite takes.
    fn calls(self) -> Vec<Vec<&'static str>> {
        match self {
            Self::Host => vec![
                vec!["--package", "proxy-common", "--package", "proxy-userspace", "--package", "xtask"],
                // The laboratory's own parts; its integration tests are the other suites.
                vec!["--package", "sluice-tests", "--lib", "--bins"],
            ],
            _ => vec![vec!["--package", "sluice-tests", "--test", self.name()]],
        }
    }
}

/// Runs what was asked for; `true` if nothing failed.
pub fn run(workspace: &Workspace, selection: &Selection) -> Result<bool> {
    let named = !selection.suites.is_empty();
    let suites = if named { selection.suites.clone() } else { Suite::ALL.to_vec() };
    let coverage = selection.coverage.then(|| Coverage::prepare(workspace)).transpose()?;
    let mut total = Tally::default();
    let mut ran = Vec::new();
    for suite in suites {
        let waits = if named { None } else { suite.waits() };
        if let Some(why) = suite.absent().or(waits).or(suite.hindered()) {
            total.skip(suite.name(), why);
        } else {
            println!("\n== {} ==", suite.name());
            ran.push(suite);
            match run_suite(workspace, suite, selection, coverage.as_ref()) {
                Ok(tally) => total.add(tally),
                Err(error) => total.fail(format!("{}: {error:#}", suite.name())),
            }
        }
    }
    if let Some(coverage) = coverage {
        coverage.report(workspace, &ran)?;
        total.add(rows::report(workspace)?);
    }
    println!("\n{total}");
    Ok(total.failed() == 0)
}

fn run_suite(
    workspace: &Workspace,
    suite: Suite,
    selection: &Selection,
    coverage: Option<&Coverage>,
) -> Result<Tally> {
    setup::ensure(workspace, suite.needs())?;
    if suite != Suite::Host {
        // The laboratory starts the agent as the program that it is, from beside its own.
        let mut build = workspace.cargo("build");
        build.args(["--package", "proxy-userspace"]);
        environment(&mut build, selection, coverage);
        shell::run(&mut build)?;
    }
    if suite == Suite::Net {
        // Another version, to upgrade to.
        let mut build = workspace.cargo("build");
        build.args(["--package", "proxy-userspace", "--features", "next-layout", "--bin", "sluice-next"]);
        environment(&mut build, selection, coverage);
        shell::run(&mut build)?;
    }
    let image =
        (suite == Suite::Cluster).then(|| image::make(workspace, &image::Wanted::default())).transpose()?;
    let mut reader = Reader::default();
    let mut content = true;
    for arguments in suite.calls() {
        let mut test = workspace.cargo("test");
        test.arg("--no-fail-fast").args(arguments);
        environment(&mut test, selection, coverage);
        if let Some(image) = &image {
            test.env("SLUICE_IMAGE", &image.archive).env("SLUICE_IMAGE_NAME", &image.name);
        }
        if suite.captures_output() {
            // Skips are announced by tests that pass, whose output libtest keeps to itself unless told.
            test.args(["--", "--show-output"]);
        }
        content &= read(&mut test, &mut reader)?;
    }
    Ok(reader.finish(suite.name(), content))
}

/// Passes on what one `cargo test` prints; whether cargo was content.
fn read(test: &mut Command, reader: &mut Reader) -> Result<bool> {
    test.stdout(Stdio::piped());
    let mut child = test.spawn().with_context(|| format!("cannot start `{}`", shell::line(test)))?;
    let output = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        if reader.read(&line) {
            writeln!(std::io::stdout(), "{line}").context("cannot print what cargo test prints")?;
        }
    }
    Ok(child.wait().context("cannot wait for cargo test")?.success())
}

fn environment(cargo: &mut Command, selection: &Selection, coverage: Option<&Coverage>) {
    if let Some(seed) = selection.seed {
        cargo.env("SLUICE_SEED", seed.to_string()).env("PROPTEST_RNG_SEED", seed.to_string());
    }
    if let Some(steps) = selection.steps {
        // A property's case takes as long as thousands of the simulator's steps.
        let cases = (steps / 4000).max(256);
        cargo.env("SLUICE_STEPS", steps.to_string()).env("PROPTEST_CASES", cases.to_string());
    }
    if let Some(coverage) = coverage {
        coverage.apply(cargo);
    }
}
