//! L-01: the agent is killed at any moment: while it loads, while it fills the maps, at rest, amid changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use sluice_tests::lab::agent::Agent;
use sluice_tests::lab::app::{App, Backend, Objects};
use sluice_tests::lab::loaded::Loaded;
use sluice_tests::lab::{Bed, BedConfig, Manifests, Who, Wiring};
use sluice_tests::simulation::Dice;
use sluice_tests::traffic::Load;
use sluice_tests::wait::{PATIENCE, until};

use crate::change::streams;
use crate::harness::{Group, Story};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);
/// Kills in one run of the story; `SLUICE_KILLS` asks for another number.
const KILLS: usize = 10;
/// Between two changes: twenty a second.
const PACE: Duration = Duration::from_millis(50);
/// Services that change all the time.
const RESTLESS: std::ops::Range<u8> = 11..17;

/// With pins and without, since the agent finds its maps in two ways.
pub fn groups() -> Vec<Group> {
    [("pinned", Wiring::Routed, true), ("unpinned", Wiring::Bridged, false)]
        .into_iter()
        .map(|(name, wiring, bpffs)| Group {
            name: format!("kills::{name}"),
            config: BedConfig { bpffs, ..BedConfig::new(wiring) },
            setup: Box::new(setup),
            stories: vec![Story::new("L01_killed_at_random_moments_amid_changes", killed)],
        })
        .collect()
}

fn app() -> App {
    App::new("app", 1, [PB, PC])
}

fn restless(number: u8, backends: &[Backend]) -> App {
    App::new(&format!("restless-{number}"), number, backends.iter().copied())
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    bed.start_agent()?;
    bed.apply(&app())?;
    settle(bed)
}

/// All Services as they are at the beginning and at the end.
fn settle(bed: &Bed) -> Result<()> {
    RESTLESS.into_iter().try_for_each(|number| bed.apply(&restless(number, &[PB, PC])))
}

fn killed(bed: &mut Bed) -> Result<()> {
    let (before, services) = (bed.loaded()?, bed.agent()?.home.services()?);
    let open = descriptors(bed)?;
    let kills = match std::env::var("SLUICE_KILLS") {
        Ok(number) => number.parse().context("SLUICE_KILLS is a number")?,
        Err(_) => KILLS,
    };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let mut dice = Dice::new(seed);
    let load = Load::start(streams(bed, &app()))?;
    let churn = Churn::start(bed.manifests.clone(), seed);
    let mut agent = bed.agent.take().context("no agent runs")?;
    for number in 0..kills {
        let ready = dice.chance(400);
        churn.pause(dice.chance(250));
        // The moment is the point: there is nothing to wait for.
        let moment = Duration::from_millis(dice.next() % 1000);
        let told =
            || format!("kill {number}, {moment:?} after it was {}", if ready { "ready" } else { "started" });
        if ready {
            agent.ready(Who::LOCAL_PODS.len() + 1).with_context(told)?;
        }
        std::thread::sleep(moment);
        let home = agent.kill().with_context(told)?;
        load.progress(1).with_context(told)?;
        agent = Agent::start(home)?;
    }
    agent.ready(Who::LOCAL_PODS.len() + 1)?;
    bed.agent = Some(agent);
    ensure!(churn.finish()? > 0, "nothing has changed meanwhile");
    settle(bed)?;
    load.finish()?;
    let after = bed.agent()?.home.services()?;
    ensure!(services == after, "`services` printed {services} before and {after} after");
    until("the kernel to hold what it held before", PATIENCE, || same(&before, &bed.loaded()?))?;
    until("the agent to have as many descriptors as the first one", PATIENCE, || {
        let now = descriptors(bed)?;
        ensure!(now <= open, "{now} are open, {open} were");
        Ok(())
    })
}

fn same(before: &Loaded, now: &Loaded) -> Result<()> {
    ensure!(before == now, "before it was {before:?}\nnow it is {now:?}");
    Ok(())
}

/// Descriptors that the agent has open.
fn descriptors(bed: &Bed) -> Result<usize> {
    let path = format!("/proc/{}/fd", bed.agent()?.pid());
    Ok(std::fs::read_dir(&path).with_context(|| format!("cannot list {path}"))?.count())
}

/// A thread that changes one restless Service after the other: other endpoints, none, gone, back.
struct Churn {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Churn {
    fn start(manifests: Manifests, seed: u64) -> Self {
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, paused) = (stop.clone(), pause.clone());
        let thread = std::thread::spawn(move || {
            let mut dice = Dice::new(!seed);
            let mut changes = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(PACE);
                if paused.load(Ordering::Relaxed) {
                    continue;
                }
                let lists: [&[Backend]; 4] = [&[PB], &[PC], &[PB, PC], &[]];
                let number = RESTLESS.start + dice.below(RESTLESS.len()) as u8;
                let app = restless(number, lists[dice.below(lists.len())]);
                manifests.apply(&app)?;
                if dice.chance(250) {
                    manifests.delete(&app)?;
                }
                changes += 1;
            }
            Ok(changes)
        });
        Self { stop, pause, thread }
    }

    /// Whether the next agent finds peace.
    fn pause(&self, pause: bool) {
        self.pause.store(pause, Ordering::Relaxed);
    }

    /// How many changes there were.
    fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that changes things panicked"))?
    }
}
