//! Each target on its seeds and on their neighbourhood. What libFuzzer finds becomes a seed.

use super::target;
use crate::simulation::Dice;

/// Changed copies of each seed.
const CHANGES: usize = 50;

fn run(name: &str) {
    let target = target(name).expect("a target of this name");
    let mut dice = Dice::new(1);
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        (target.run)(seed);
        for _ in 0..CHANGES {
            (target.run)(&changed(seed, &seeds, &mut dice));
        }
    }
}

/// A few bytes flipped, a part cut out, or another seed's part put in.
fn changed(seed: &[u8], seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = dice.below(bytes.len());
        let end = (at + 1 + dice.below(32)).min(bytes.len());
        match dice.below(4) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next() as u8,
            2 => drop(bytes.drain(at..end)),
            _ => {
                let other = &seeds[dice.below(seeds.len())];
                let from = dice.below(other.len());
                let to = (from + 1 + dice.below(32)).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
    bytes
}

#[test]
fn packets() {
    run("packet");
}

#[test]
fn manifests() {
    run("manifest");
}

#[test]
fn watches() {
    run("watch");
}

#[test]
fn maps() {
    run("maps");
}
