//! From options to loaded programs and open maps: adopt what an earlier agent left, create the rest.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use proxy_common::abi::Addr;

use super::error::{DatapathError, kernel_release};
use super::hooks::{self, Known, Ours};
use super::inherit::Inheritance;
use super::netns_cookie;
use super::owner::{self, Owners};
use super::pins::Pins;
use super::programs::{Make, Programs};
use super::specs::{self, CHUNKED, GROWING, Sizes, Spec};
use super::summed::{Summed, Unsummed};
use super::sys::{self, Target};
use super::tables::Tables;

/// What to load and where to keep it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A mounted bpffs; `None`, or nothing pinned there: maps are found again by the programs that use them, which needs
    /// CAP_SYS_ADMIN.
    pub bpffs: Option<PathBuf>,
    /// A directory of cgroup v2; `None`: sockets are not translated, packets are.
    pub cgroup: Option<PathBuf>,
    pub sizes: Sizes,
    /// The programs' clock is `Config::test_clock`, and backends are drawn in a fixed order.
    pub test_mode: bool,
}

/// Programs of an Ethernet device.
pub const ETHERNET: [&str; 2] = ["sluice_ingress", "sluice_egress"];
/// Programs of a device without Ethernet header. Few nodes have one: they are loaded when it appears.
pub const PLAIN: [&str; 2] = ["sluice_ingr_l3", "sluice_egr_l3"];

/// What the object's globals are set to, and what its maps look like.
#[derive(Debug)]
pub struct Recipe {
    pub wanted: Vec<Spec>,
    ring_size: u32,
    test_mode: bool,
    summed: Option<Summed>,
}

impl Recipe {
    fn globals(&self) -> impl Hash {
        (self.ring_size, self.test_mode, self.summed)
    }

    fn summed_at(&self) -> u32 {
        self.summed.map_or(0, |summed| summed.at)
    }
}

/// Programs of the catch-all device, loaded when there is one.
pub const CAUGHT: [&str; 2] = ["sluice_in_catch", "sluice_eg_catch"];

/// The result of loading, before it is dressed as a [`super::Datapath`].
pub struct Loaded {
    pub programs: Programs,
    pub pins: Pins,
    pub recipe: Recipe,
    pub tables: Tables,
    pub cgroup: Option<OwnedFd>,
    pub inheritance: Inheritance,
    pub adopted: bool,
    pub notices: Vec<String>,
    pub unsummed: Option<String>,
}

pub fn load(options: &Options) -> Result<Loaded, DatapathError> {
    // The kernel's types are read beside all else: that takes a tenth of a start.
    let types = std::thread::Builder::new().name("types".into()).spawn(read_types).ok();
    let cgroup = options.cgroup.as_deref().map(open_cgroup).transpose()?;
    let cpus = possible_cpus()?;
    let mut wanted = specs::persistent(&options.sizes, cpus);
    let (mut pins, inheritance) = match &options.bpffs {
        Some(bpffs) => open_pins(bpffs, cgroup.as_ref(), &wanted)?,
        None => {
            let pins = Pins::private()?;
            let inheritance = adopt_by_id(&pins, cgroup.as_ref(), &wanted)?;
            (pins, inheritance)
        }
    };
    let (mut found, notices) = check_pins(&pins, &wanted)?;
    let fresh = inheritance.resize(&mut wanted, &mut found);
    let ring_size = specs::pairs(*found.get("FLOWS_V4").unwrap_or(&options.sizes.flows), cpus);
    // Those whose size is decided here, and so the large ones, are made while the kernel's types are read; the rest comes with the object.
    for spec in wanted.iter().filter(|spec| !found.contains_key(spec.name)) {
        spec.entries.map_or(Ok(()), |entries| pins.make(spec, entries))?;
    }
    // Where no thread can be had this one does it.
    let (loader, summed) = types.map_or_else(read_types, |types| {
        types.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let unsummed = summed.as_ref().err().map(ToString::to_string);
    let recipe = Recipe { wanted, ring_size, test_mode: options.test_mode, summed: summed.ok() };
    let ebpf = load_object(loader, &pins, &recipe, None)?;
    inheritance.fill(&pins, &fresh)?;
    let (make, mut maps) = open_maps(&pins, &recipe)?;
    let mut earlier = inheritance.programs()?;
    earlier.extend(pins.programs()?);
    let mut programs = Programs::new(make, earlier)?;
    let sockets = socket_programs().filter(|_| cgroup.is_some());
    let names: Vec<_> = ETHERNET.into_iter().chain(sockets).collect();
    // The kernel waits a grace period for each map that is put in a place: beside the verifier that costs nothing.
    let tables = std::thread::scope(|scope| {
        let tables = scope.spawn(|| Tables::open(&mut maps, &pins, &options.sizes));
        programs.require(&pins, &names, |_| Ok(ebpf))?;
        tables.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    pins.finish()?;
    let adopted = !found.is_empty();
    Ok(Loaded { programs, pins, recipe, tables, cgroup, inheritance, adopted, notices, unsummed })
}

/// What is made of the kernel's types.
fn read_types() -> (EbpfLoader<'static>, Result<Summed, Unsummed>) {
    (new_loader(), Summed::of_this_kernel())
}

/// A loader that has given back the kernel's types, which aya reads in any case: nothing is relocated against them, and keeping them costs 20 MB.
fn new_loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// The pins of this layout; where there are none yet, what another layout's agent has left; where nothing is pinned, what an
/// agent without a bpffs has left attached. Without CAP_SYS_ADMIN that last cannot be seen, and nothing is found.
fn open_pins(
    bpffs: &Path,
    cgroup: Option<&OwnedFd>,
    wanted: &[Spec],
) -> Result<(Pins, Inheritance), DatapathError> {
    let here = netns_cookie().ok();
    let is_here = |pins: &Pins| owner::is_here(here, owner::of_pins(pins));
    Pins::sweep(bpffs)?;
    let pinned = Pins::layouts(bpffs)?.iter().any(is_here);
    let mut others = Pins::of_other_layouts(bpffs)?;
    others.retain(is_here);
    let pins = if Pins::are_at(bpffs) { Pins::shared(bpffs)? } else { Pins::unfinished(bpffs)? };
    if !is_here(&pins) {
        return Err(DatapathError::OtherNamespace { path: bpffs.to_owned() });
    }
    let inheritance = if pinned {
        Inheritance::of_pins(&pins, others, wanted)?
    } else {
        adopt_by_id(&pins, cgroup, wanted)?
    };
    Ok((pins, inheritance))
}

/// Opens a directory of cgroup v2.
pub fn open_cgroup(path: &Path) -> Result<OwnedFd, DatapathError> {
    let file = |source| DatapathError::File { operation: "open cgroup", path: path.to_owned(), source };
    let found = statfs(path).map_err(|errno| file(errno.into()))?;
    if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(DatapathError::NotCgroup2 { path: path.to_owned() });
    }
    std::fs::File::open(path).map(OwnedFd::from).map_err(file)
}

fn possible_cpus() -> Result<u32, DatapathError> {
    let count = aya::util::nr_cpus().map_err(|(path, source)| DatapathError::File {
        operation: "read the number of CPUs from",
        path: path.into(),
        source,
    })?;
    Ok(u32::try_from(count).unwrap_or(1))
}

/// Pins the maps that our attached programs use. Devices come first; on the cgroup there may be programs of an agent in
/// another network namespace, which are left alone.
fn adopt_by_id(pins: &Pins, cgroup: Option<&OwnedFd>, wanted: &[Spec]) -> Result<Inheritance, DatapathError> {
    let mut inheritance = Inheritance::default();
    let here = netns_cookie().ok();
    let devices = hooks::devices()?.into_iter().map(|(_, ifindex)| Target::Device(ifindex));
    let mut places: Vec<_> =
        devices.flat_map(|device| [(device, hooks::TC_INGRESS), (device, hooks::TC_EGRESS)]).collect();
    let mut owners = Owners::default();
    if let Some(cgroup) = cgroup {
        owners = Owners::on(Target::Cgroup(cgroup.as_fd()), &Known::new())?;
        places.extend(hooks::SOCKETS.iter().map(|(hook, _)| (Target::Cgroup(cgroup.as_fd()), *hook)));
    }
    for (target, hook) in places {
        let found = match hooks::look(target, hook, &Known::new()) {
            Ok(found) => found,
            // A kernel without tcx is reported when something is to be attached.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => continue,
            Err(error) => {
                return Err(DatapathError::of("look for our programs", error, |source| {
                    hooks::attach_error("look for our programs", target, hook, source)
                }));
            }
        };
        let mine = |ours: &Ours| owner::is_here(here, owners.of(ours));
        for ours in found.ours.into_iter().filter(mine) {
            for id in ours.info.maps {
                adopt_map(pins, id, wanted, &mut inheritance)?;
            }
        }
    }
    Ok(inheritance)
}

/// Pins the map with this id under its name, unless one of that name has been found already.
fn adopt_map(
    pins: &Pins,
    id: u32,
    wanted: &[Spec],
    inheritance: &mut Inheritance,
) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Map { operation: "adopt", map: "of an attached program", source };
    let fd = sys::map_by_id(id).map_err(failed)?;
    let info = sys::map_info(fd.as_fd()).map_err(failed)?;
    // The directory holds nothing but what has been found so, and so a taken name is the same map.
    let named = |spec: &&Spec| spec.name == info.name;
    let convertible = wanted.iter().find(named).map_or(Ok(false), |spec| inheritance.take(spec, &fd))?;
    match wanted.iter().chain(&GROWING).chain(&CHUNKED).find(named) {
        Some(spec) if !convertible && Pins::open(&pins.map(spec.name))?.is_none() => {
            Pins::put(fd.as_fd(), &pins.map(spec.name))
        }
        _ => Ok(()),
    }
}

/// What is at the place of a map's pin.
enum Pinned {
    Nothing,
    Map(sys::MapInfo),
    /// What it is, and what is needed.
    Misfit(String, String),
}

fn look_at_pin(spec: &Spec, path: &Path) -> Result<Pinned, DatapathError> {
    let misfit = |is: &str| Ok(Pinned::Misfit(is.to_owned(), "a pinned map".to_owned()));
    let fd = match Pins::open(path) {
        Ok(Some(fd)) => fd,
        Ok(None) if std::fs::symlink_metadata(path).is_err() => return Ok(Pinned::Nothing),
        Ok(None) => return misfit("a link that leads nowhere"),
        Err(DatapathError::NoPin { .. }) => return misfit("a directory"),
        Err(error) => return Err(error),
    };
    let Ok(info) = sys::map_info(fd.as_fd()) else { return misfit("no map") };
    Ok(match spec.conflict(&info) {
        Some((is, needed)) => Pinned::Misfit(is, needed),
        None => Pinned::Map(info),
    })
}

/// Entries of every pinned map that fits, and a line for each whose size is another than was asked for (L-22), and for each pin that was put
/// aside because it does not fit: aya would use it unseen, and crash (L-23). What attached programs use instead is refused.
fn check_pins(
    pins: &Pins,
    wanted: &[Spec],
) -> Result<(HashMap<&'static str, u32>, Vec<String>), DatapathError> {
    let mut found = HashMap::new();
    let mut notices = Vec::new();
    for spec in wanted.iter().chain(&GROWING) {
        let path = pins.map(spec.name);
        match look_at_pin(spec, &path)? {
            Pinned::Nothing => {}
            Pinned::Map(info) => {
                notices.extend(other_size(spec, &info));
                found.insert(spec.name, info.max_entries);
            }
            Pinned::Misfit(found, needed) if pins.is_private() || pins.is_unfinished() => {
                let place = "the attached programs".to_owned();
                return Err(DatapathError::ForeignMap { map: spec.name, place, found, needed });
            }
            Pinned::Misfit(is, needed) => {
                let aside = pins.put_aside(spec.name)?;
                notices.push(format!(
                    "map {} found at {} is {is}, this version needs {needed}: put aside as {}, and made anew, what it held is lost",
                    spec.name,
                    path.display(),
                    aside.display()
                ));
            }
        }
    }
    Ok((found, notices))
}

fn other_size(spec: &Spec, info: &sys::MapInfo) -> Option<String> {
    spec.entries.filter(|&entries| entries != info.max_entries).map(|entries| {
        format!(
            "map {} keeps its {} entries, not {entries} as configured: `sluice cleanup` and a new start change it",
            spec.name, info.max_entries
        )
    })
}

/// The pinned maps, and what programs over them are made of.
fn open_maps(pins: &Pins, recipe: &Recipe) -> Result<(Make, HashMap<&'static str, OwnedFd>), DatapathError> {
    let (mut maps, mut ids) = (HashMap::new(), Vec::new());
    for spec in &recipe.wanted {
        let path = pins.map(spec.name);
        let fd = Pins::open(&path)?.ok_or(DatapathError::PinGone { path })?;
        let failed = |source| DatapathError::Map { operation: "describe", map: spec.name, source };
        ids.push(sys::map_info(fd.as_fd()).map_err(failed)?.id);
        maps.insert(spec.name, fd);
    }
    Ok((Make::of((crate::OBJECT, recipe.globals(), ids)), maps))
}

/// That programs will be over the very maps of those of this make: aya would make anew what it does not find.
fn check_same(pins: &Pins, recipe: &Recipe, make: Make) -> Result<(), DatapathError> {
    let (found, _) = open_maps(pins, recipe)?;
    if found == make { Ok(()) } else { Err(DatapathError::OtherPins { path: pins.map("") }) }
}

/// [`load_object`], for programs beside those of this make.
pub fn load_again(
    pins: &Pins,
    recipe: &Recipe,
    make: Make,
    traced: Option<IpAddr>,
) -> Result<Ebpf, DatapathError> {
    check_same(pins, recipe, make)?;
    load_object(new_loader(), pins, recipe, traced)
}

/// Prepares the object with the maps of `pins`, made where they are missing. `traced`: packets of this address are told.
fn load_object(
    loader: EbpfLoader<'static>,
    pins: &Pins,
    recipe: &Recipe,
    traced: Option<IpAddr>,
) -> Result<Ebpf, DatapathError> {
    let test_mode = u32::from(recipe.test_mode);
    let (address, words) = traced.map_or(([0; 4], 0), traced_globals);
    let summed_at = recipe.summed_at();
    // It borrows from here on.
    let mut loader: EbpfLoader<'_> = loader;
    loader
        .override_global("RING_SIZE", &recipe.ring_size, true)
        .override_global("TEST_MODE", &test_mode, true)
        .override_global("SUMMED_AT", &summed_at, true)
        .override_global("TRACED", &address, true)
        .override_global("TRACED_WORDS", &words, true);
    for spec in &recipe.wanted {
        loader.map_pin_path(spec.name, pins.map(spec.name));
        if let Some(entries) = spec.entries {
            loader.map_max_entries(spec.name, entries);
        }
    }
    prepare(&mut loader, recipe)
}

/// Maps that programs write: a copy of the programs that must change nothing has its own.
pub const WRITTEN: [&str; 16] = [
    "FLOWS_V4",
    "FLOWS_V6",
    "RING_V4",
    "RING_V6",
    "RING_USED",
    "RING_PENDING",
    "AFFINITY_V4",
    "AFFINITY_V6",
    "FRAGMENTS_V4",
    "FRAGMENTS_V6",
    "RECENT_V4",
    "RECENT_V6",
    "NEWS",
    "COUNTERS",
    "GUARD",
    "SOCKETS",
];

/// Prepares a copy of the object over the maps of this make, except for those that programs write: small ones of its own.
pub fn load_copy(pins: &Pins, recipe: &Recipe, make: Make) -> Result<Ebpf, DatapathError> {
    const FLOWS: u32 = 65_536;
    check_same(pins, recipe, make)?;
    let summed_at = recipe.summed_at();
    // It borrows from here on.
    let mut loader: EbpfLoader<'_> = new_loader();
    loader.override_global("RING_SIZE", &recipe.ring_size, true).override_global(
        "SUMMED_AT",
        &summed_at,
        true,
    );
    for spec in &recipe.wanted {
        if !WRITTEN.contains(&spec.name) {
            loader.map_pin_path(spec.name, pins.map(spec.name));
        }
    }
    for (name, entries) in [("FLOWS_V4", FLOWS), ("FLOWS_V6", FLOWS), ("RECENT_V4", 1), ("RECENT_V6", 1)] {
        loader.map_max_entries(name, entries);
    }
    prepare(&mut loader, recipe)
}

fn prepare(loader: &mut EbpfLoader<'_>, recipe: &Recipe) -> Result<Ebpf, DatapathError> {
    let object = recipe.summed.map(|summed| summed.put(crate::OBJECT));
    loader.load(object.as_deref().unwrap_or(crate::OBJECT)).map_err(|error| match permission(&error) {
        Some(source) => DatapathError::not_permitted("create maps", source),
        None => DatapathError::Object { kernel: kernel_release(), source: Box::new(error) },
    })
}

/// The programs' form of an address: mapped, and the words it has in its own family.
fn traced_globals(address: IpAddr) -> ([u32; 4], u32) {
    let (octets, words) = match address {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped().octets(), 1),
        IpAddr::V6(ip) => (ip.octets(), 4),
    };
    (Addr::v6(octets).0, words)
}

/// EPERM at the bottom of an error's chain of sources.
fn permission(error: &(dyn std::error::Error + 'static)) -> Option<std::io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let denied = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if denied == Some(libc::EPERM) {
            return Some(std::io::Error::from_raw_os_error(libc::EPERM));
        }
        cause = error.source();
    }
    None
}

/// Programs of the node's own sockets.
fn socket_programs() -> impl Iterator<Item = &'static str> {
    hooks::SOCKETS.iter().map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map in neither list would be written by programs that are only asked, or be empty when they look.
    #[test]
    fn every_map_is_read_by_copies_or_their_own() {
        const READ: [&str; 14] = [
            "FRONTENDS_OF_V4",
            "FRONTENDS_OF_V6",
            "SERVICES_OF",
            "SLOTS_V4",
            "SLOTS_V6",
            "ADDRESSES_OF_V4",
            "ADDRESSES_OF_V6",
            "SIEVE",
            "ENDPOINT_SIEVE",
            "RANGES_V4",
            "RANGES_V6",
            "ENDPOINTS_OF",
            "DEVICES",
            "CONFIG",
        ];
        for spec in specs::persistent(&Sizes::default(), 2) {
            assert!(READ.contains(&spec.name) != WRITTEN.contains(&spec.name), "{}", spec.name);
        }
    }
}
