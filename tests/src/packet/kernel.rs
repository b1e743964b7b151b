//! The real programs, by BPF_PROG_TEST_RUN.

use anyhow::{Context, Result};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use proxy_common::abi::{
    Abi, Addr, AddressClass, Backend, CHUNK, Config, Device, Frontend, FrontendKey, Reason, Service,
};

use super::host::RING;
use super::story::{Action, Node, Outcome};
use super::world::{self, Writer};
use crate::sys::Wire;

/// Offset and size of `__sk_buff` (include/uapi/linux/bpf.h); `mark` is its third word.
const CONTEXT: usize = 192;
const MARK_AT: usize = 8;

/// Return values of tc programs.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// A node in the kernel: programs and maps that are attached to nothing.
pub struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads programs and maps in test mode and writes the world.
    pub fn load() -> Result<Self> {
        let cpus = std::thread::available_parallelism()?.get() as u32;
        let ring = RING;
        let test_mode = 1u32;
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global("RING_SIZE", &ring, true).override_global(
            "TEST_MODE",
            &test_mode,
            true,
        );
        for rings in ["RINGS_V4", "RINGS_V6"] {
            loader.map_max_entries(rings, RING * cpus.max(64));
        }
        let mut ebpf = loader.load(proxy_userspace::OBJECT).context("cannot load the BPF object")?;
        for name in ["sluice_ingress", "sluice_egress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        let mut kernel = Self { ebpf };
        kernel.set_config(world::config())?;
        kernel.fill::<1>("V4")?;
        kernel.fill::<4>("V6")?;
        Ok(kernel)
    }

    fn set_config(&mut self, config: Config) -> Result<()> {
        let mut map: Array<_, Wire<Config>> = self.map("CONFIG")?.try_into()?;
        Ok(map.set(0, Wire(config), 0)?)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    fn fill<const N: usize>(&mut self, family: &'static str) -> Result<()> {
        let mut writer = Maps { kernel: self, family, failed: None };
        world::fill::<N>(&mut writer);
        writer.failed.map_or(Ok(()), Err)
    }
}

/// Writes one family's maps; the first failure is kept.
struct Maps<'a> {
    kernel: &'a mut Kernel,
    family: &'static str,
    failed: Option<anyhow::Error>,
}

impl Maps<'_> {
    fn keep(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }

    fn hash<K: Abi, V: Abi>(&mut self, name: &str, key: K, value: V) {
        let result = (|| {
            let mut map: HashMap<_, Wire<K>, Wire<V>> = self.kernel.map(name)?.try_into()?;
            Ok(map.insert(Wire(key), Wire(value), 0)?)
        })();
        self.keep(result);
    }

    fn array<V: Abi>(&mut self, name: &str, index: u32, value: V) {
        let result = (|| {
            let mut map: Array<_, Wire<V>> = self.kernel.map(name)?.try_into()?;
            Ok(map.set(index, Wire(value), 0)?)
        })();
        self.keep(result);
    }

    fn slot<const N: usize>(&mut self, slot: u32, backend: Backend<N>) -> Result<()> {
        let name = format!("SLOTS_{}", self.family);
        let mut outer: ArrayOfMaps<_, Array<MapData, Wire<Backend<N>>>> =
            self.kernel.map(&name)?.try_into()?;
        let mut inner = Array::<MapData, Wire<Backend<N>>>::create(CHUNK, 0)?;
        inner.set(slot % CHUNK, Wire(backend), 0)?;
        Ok(outer.set(slot / CHUNK, &inner, 0)?)
    }
}

impl<const N: usize> Writer<N> for Maps<'_> {
    fn address(&mut self, address: Addr<N>, class: u32) {
        self.hash(&format!("ADDRESSES_{}", self.family), address, AddressClass { bits: class });
    }
    fn frontend(&mut self, key: FrontendKey<N>, frontend: Frontend) {
        self.hash(&format!("FRONTENDS_{}", self.family), key, frontend);
    }
    fn service(&mut self, index: u32, service: Service) {
        self.array("SERVICES", index, service);
    }
    fn backend(&mut self, slot: u32, backend: Backend<N>) {
        let result = self.slot(slot, backend);
        self.keep(result);
    }
    fn endpoint(&mut self, id: u32, generation: u32) {
        self.array("ENDPOINTS", id, generation);
    }
    fn device(&mut self, ifindex: u32, device: Device) {
        self.hash("DEVICES", ifindex, device);
    }
}

impl Node for Kernel {
    fn run(&mut self, ingress: bool, bytes: &[u8], mark: u32) -> Outcome {
        let name = if ingress { "sluice_ingress" } else { "sluice_egress" };
        let program = self.ebpf.program_mut(name).expect("the object has the program");
        let program: &mut SchedClassifier = program.try_into().expect("it is a tc program");
        let mut context = [0; CONTEXT];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut answer = [0; CONTEXT];
        let mut out = vec![0; bytes.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut answer);
        let result = program.test_run(options).expect("test run");
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            TC_ACT_UNSPEC => Action::Pass,
            TC_ACT_SHOT => Action::Drop,
            TC_ACT_REDIRECT => Action::Reject,
            other => unreachable!("a tc program returned {other}"),
        };
        let [.., a, b, c, d] = answer[..MARK_AT + 4] else { unreachable!("a context is longer") };
        let mark = u32::from_ne_bytes([a, b, c, d]);
        Outcome { action, bytes: out, mark }
    }

    fn set_clock(&mut self, tick: u32) {
        self.set_config(Config { test_clock: tick, ..world::config() }).expect("write the clock");
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        let mut map: Array<_, u32> = self.map("ENDPOINTS").expect("a map").try_into().expect("an array");
        map.set(world::endpoint_id(v6), generation, 0).expect("write the endpoint");
    }

    fn count(&mut self, reason: Reason) -> u64 {
        let map: PerCpuArray<_, u64> =
            self.map("COUNTERS").expect("a map").try_into().expect("a per-CPU array");
        map.get(&(reason as u32), 0).expect("read the counter").iter().sum()
    }
}
