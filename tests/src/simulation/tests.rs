use super::{Events, Fault, run};

/// Steps of one history, unless a seed is asked for.
const STEPS: u64 = 50_000;
/// Histories of an ordinary test run.
const HISTORIES: u64 = 20;
/// Within so many steps a planted bug must be found.
const FOUND: u64 = 100_000;
/// In histories of so many steps.
const QUARTER: u64 = 25_000;

fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A million steps, in which everything has happened that the simulation is there for; `--seed` repeats one history, `--steps`
/// makes it longer, or asks for more of them.
#[test]
fn no_history_violates_an_invariant() {
    let (seeds, steps) = match (asked("SLUICE_SEED"), asked("SLUICE_STEPS")) {
        (Some(seed), steps) => (seed..seed + 1, steps.unwrap_or(STEPS)),
        (None, steps) => (0..steps.map_or(HISTORIES, |steps| steps.div_ceil(STEPS)), STEPS),
    };
    let mut events = Events::default();
    for seed in seeds.clone() {
        match run(seed, steps, Fault::None) {
            Ok(happened) => events.add(&happened),
            Err(violation) => panic!("{violation}"),
        }
    }
    println!("{events:?}");
    if seeds.end - seeds.start >= HISTORIES {
        assert_eq!(events.missing(), [], "never happened");
    }
}

/// Looked for in one history after another, a planted bug shows up within [`FOUND`] steps, and as what it is.
fn finds(fault: Fault, words: &[&str]) {
    let found = (0..FOUND / QUARTER).find_map(|seed| run(seed, QUARTER, fault).err());
    let Some(violation) = found else { panic!("{fault:?} was not found in {FOUND} steps") };
    let told = violation.to_string();
    assert!(words.iter().any(|word| told.contains(word)), "{fault:?} was taken for something else: {told}");
}

#[test]
fn a_flow_that_loses_one_half_is_found() {
    finds(Fault::HalfLost, &["half"]);
}

#[test]
fn slots_used_again_too_early_are_found() {
    finds(Fault::EarlyReuse, &["is not the Service's", "which the Service does not have"]);
}

#[test]
fn a_port_given_twice_is_found() {
    finds(Fault::PortTwice, &["half", "brings bytes", "comes from"]);
}

#[test]
fn a_history_can_be_repeated() {
    let violation = |_| run(3, FOUND, Fault::PortTwice).map_err(|violation| violation.to_string());
    assert_eq!(violation(0), violation(1));
}
