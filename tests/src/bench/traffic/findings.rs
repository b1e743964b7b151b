//! From samples to a table.

use anyhow::Result;

use super::beds::{Beds, Site, Translator};
use super::settings::{Base, Kind, Setting, aims};
use crate::bench::report::{Figure, Row, Table, Unit};
use crate::bench::stats::{is_noisy, ratios, spread};

/// A/A wider than this says that the machine is too busy (performance.md: 5 % on one core, 10 % of forwarding).
const NOISE: f64 = 0.10;

/// Samples of those who serve a setting, round by round; the last one of them, which is ours by default, is measured twice.
pub struct Samples<'a> {
    pub setting: Setting,
    pub of: Vec<(&'a Site, Vec<f64>)>,
    pub again: Vec<f64>,
}

impl Samples<'_> {
    fn by(&self, proxy: Translator) -> Option<&[f64]> {
        self.of.iter().find(|(site, _)| site.proxy == proxy).map(|(_, own)| own.as_slice())
    }

    /// Those of kube-proxy's better mode.
    fn best(&self, unit: Unit) -> Option<&[f64]> {
        let modes = self.of.iter().filter(|(site, _)| matches!(site.proxy, Translator::KubeProxy(_)));
        let by_median = modes.filter_map(|(_, own)| Some((spread(own)?.median, own.as_slice())));
        let compare = |a: &(f64, &[f64]), b: &(f64, &[f64])| a.0.total_cmp(&b.0);
        let found = if is_time(unit) { by_median.min_by(compare) } else { by_median.max_by(compare) };
        found.map(|(_, own)| own)
    }
}

const fn is_time(unit: Unit) -> bool {
    matches!(unit, Unit::Nanoseconds)
}

/// How much faster `of` is, round by round.
pub fn faster(unit: Unit, of: &[f64], to: &[f64]) -> Vec<f64> {
    if is_time(unit) { ratios(to, of) } else { ratios(of, to) }
}

/// The table of a scenario.
///
/// # Errors
/// Something has no samples.
pub fn table(
    scenario: &'static str,
    how: String,
    beds: &Beds,
    kind: Kind,
    samples: &[Samples<'_>],
) -> Result<Table> {
    let unit = if kind == Kind::Packets { Unit::Nanoseconds } else { Unit::PerSecond };
    let mut columns = vec![if is_time(unit) { "a packet" } else { "rate" }];
    columns.extend(Base::ALL.map(Base::name));
    let mut rows = Vec::new();
    let mut same = Vec::new();
    for own in samples {
        for (site, rates) in &own.of {
            let mut figures = vec![Figure::of(unit, rates)?];
            for base in Base::ALL {
                let to = match base {
                    Base::Nobody => own.by(Translator::Nobody),
                    Base::Limit => own.by(Translator::Redirects),
                    Base::Ipv4 => samples
                        .iter()
                        .find(|other| own.setting.is_ipv6_of(&other.setting))
                        .and_then(|other| other.by(site.proxy)),
                    Base::KubeProxy => own.best(unit),
                };
                // A figure each column: without a base there is nothing to compare with.
                let ratios = to.map_or_else(|| vec![f64::NAN], |to| faster(unit, rates, to));
                let aims = aims(kind, &own.setting, site.proxy, base);
                figures.push(Figure::of(Unit::Ratio, &ratios)?.aiming(&aims));
            }
            rows.push(Row { what: format!("{}: {}", own.setting.name(), site.proxy.name()), figures });
        }
        if let Some((_, rates)) = own.of.last() {
            same.extend(ratios(&own.again, rates));
        }
    }
    let same = spread(&same);
    Ok(Table {
        scenario,
        method: format!(
            "{how}; {} Services of one endpoint; ratios are those within a round, above 1 is faster; redirects: packets \
             redirected by their destination and by nothing else; kube-proxy: the better of its modes; Sluice with each mode of \
             `--shortcuts`",
            beds.services
        ),
        columns,
        rows,
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes: beds.missing.iter().cloned().collect(),
    })
}
