//! What the programs remember of sockets, for who looks at sockets.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use aya::Btf;
use aya::programs::Iter;
use proxy_common::abi::{Addr, Generations, SocketPair, SocketRecord};

use super::chunks::Windows;
use super::error::DatapathError;
use super::{Datapath, sys};
use crate::sync::EndpointId;

/// A backend that a socket was sent to in place of what it had dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    pub backend: SocketAddr,
    pub endpoint: EndpointId,
}

impl From<&SocketPair> for Translated {
    fn from(pair: &SocketPair) -> Self {
        let ip = IpAddr::from(Ipv6Addr::from(Addr(pair.backend).octets())).to_canonical();
        Self {
            backend: SocketAddr::new(ip, pair.backend_port.number()),
            endpoint: EndpointId { id: pair.endpoint, generation: pair.generation },
        }
    }
}

impl Datapath {
    /// What [`Self::translated_sockets`] needs, once: tens of milliseconds, most of it for the kernel's types.
    ///
    /// # Errors
    /// The kernel lacks type information or this kind of iterator.
    pub fn prepare_sockets(&mut self) -> Result<(), DatapathError> {
        if self.sockets_program.is_none() {
            self.sockets_program = Some(self.load_iterator()?);
        }
        Ok(())
    }

    /// Shows every socket that was translated, of all network namespaces and protocols: its cookie, and what it was
    /// led to. None before [`Self::prepare_sockets`].
    ///
    /// # Errors
    /// The kernel does not iterate.
    pub fn translated_sockets(
        &self,
        mut show: impl FnMut(u64, Vec<Translated>),
    ) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Iterator { source };
        let Some(program) = &self.sockets_program else { return Ok(()) };
        let file = sys::iterate(program.as_fd(), self.tables.sockets.as_fd()).map_err(failed)?;
        records(file, |record| show(record.cookie, translations(&record))).map_err(failed)
    }

    fn load_iterator(&self) -> Result<OwnedFd, DatapathError> {
        const NAME: &str = "sluice_sockets";
        let failed = |source| DatapathError::Iterator { source };
        // Dropped at once: it is large, and the program's type is all that is looked up.
        let types = Btf::from_sys_fs().map_err(|error| failed(io::Error::other(error)))?;
        let mut ebpf = self.object(None)?;
        let program = ebpf.program_mut(NAME).ok_or(DatapathError::NoProgram { program: NAME })?;
        let program: &mut Iter = program.try_into().map_err(|error| DatapathError::refused(NAME, error))?;
        program.load("bpf_sk_storage_map", &types).map_err(|error| DatapathError::refused(NAME, error))?;
        let fd = program.fd().map_err(|error| DatapathError::refused(NAME, error))?;
        fd.as_fd().try_clone_to_owned().map_err(failed)
    }

    /// Every endpoint there is, as long as the result lives.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn living(&self) -> Result<Living, DatapathError> {
        let failed = |source| DatapathError::Map { operation: "read", map: "ENDPOINTS", source };
        self.tables.endpoints.windows().map(Living).map_err(failed)
    }
}

/// See [`Datapath::living`].
#[derive(Debug)]
pub struct Living(Windows);

impl Living {
    /// Whether this is still an endpoint of the Service that had it when it got its id.
    #[must_use]
    pub fn has(&self, endpoint: EndpointId) -> bool {
        let word = self.0.word(Generations::index(endpoint.id) as usize);
        word.is_some_and(|word| {
            Generations(word.load(Ordering::Acquire)).of(endpoint.id) == endpoint.generation
        })
    }
}

fn translations(record: &SocketRecord) -> Vec<Translated> {
    record.pairs.pairs.iter().filter(|pair| pair.used != 0).map(Translated::from).collect()
}

/// The kernel fills a read with whole records; what it returns may still be cut anywhere.
fn records(mut file: impl Read, mut show: impl FnMut(SocketRecord)) -> io::Result<()> {
    const SIZE: usize = size_of::<SocketRecord>();
    let mut room = vec![0; 256 * SIZE];
    let mut filled = 0;
    loop {
        match file.read(&mut room[filled..])? {
            0 if filled == 0 => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
        let whole = filled - filled % SIZE;
        room[..whole].chunks_exact(SIZE).filter_map(sys::decode).for_each(&mut show);
        room.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Port;

    use super::*;

    #[test]
    fn a_sockets_memory_is_read_in_the_form_of_sock_diag() {
        let pair = |octets: [u8; 16], used| SocketPair {
            frontend: [1; 4],
            backend: Addr::v6(octets).0,
            frontend_port: Port::new(53),
            backend_port: Port::new(8_053),
            endpoint: 7,
            generation: 3,
            used,
        };
        let v6: Ipv6Addr = "fd00:10::6".parse().unwrap();
        let mapped: Ipv6Addr = "::ffff:10.244.1.6".parse().unwrap();
        let endpoint = EndpointId { id: 7, generation: 3 };
        let cases = [("IPv6", v6, "[fd00:10::6]:8053"), ("IPv4", mapped, "10.244.1.6:8053")];
        for (name, backend, want) in cases {
            let used = pair(backend.octets(), 1);
            assert_eq!(
                Translated::from(&used),
                Translated { backend: want.parse().unwrap(), endpoint },
                "{name}"
            );
        }
    }

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            let (now, later) = self.0.split_at(count);
            into[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    #[test]
    fn records_are_put_together_however_they_come() {
        const SIZE: usize = size_of::<SocketRecord>();
        let mut bytes = Vec::new();
        for cookie in 1..=5_u64 {
            bytes.extend(cookie.to_ne_bytes());
            bytes.resize(cookie as usize * SIZE, 0);
        }
        for step in [1, 7, SIZE - 1, SIZE, SIZE + 1, 4 * SIZE] {
            let mut cookies = Vec::new();
            records(Slow(&bytes, step), |record| {
                assert_eq!(translations(&record), [], "free places are no pairs");
                cookies.push(record.cookie);
            })
            .unwrap();
            assert_eq!(cookies, [1, 2, 3, 4, 5], "{step} bytes at a time");
        }
        let cut = records(Slow(&bytes[..SIZE + 3], SIZE), drop).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
