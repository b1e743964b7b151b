//! What the demonstration looks like.

use std::collections::BTreeMap;
use std::time::Instant;

/// Numbers the steps and knows how long it has taken.
#[derive(Debug)]
pub struct Screen {
    start: Instant,
    steps: u32,
}

impl Default for Screen {
    fn default() -> Self {
        Self { start: Instant::now(), steps: 0 }
    }
}

impl Screen {
    /// What happens now.
    pub fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{:>2}. {what}", self.steps);
    }

    /// What came of it.
    pub fn tell(&self, what: &str) {
        println!("    {what}");
    }

    /// Who answered a client how often.
    pub fn row(&self, client: &str, counts: &BTreeMap<String, u32>) {
        let shares: Vec<_> = counts.iter().map(|(backend, n)| format!("{backend} {n:>3}")).collect();
        println!("    {client:<52} {}", shares.join("   "));
    }

    pub fn end(&self) {
        println!(
            "\nEverything was as expected, in {:.0} s. Nothing is left.",
            self.start.elapsed().as_secs_f64()
        );
    }
}
