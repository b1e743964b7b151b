//! Arrays in chunks, as many as have been needed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use proxy_common::abi::Abi;

use super::error::DatapathError;
use super::pins::{Pins, unlink};
use super::specs::Spec;
use super::store::{failed, put, set_all};
use super::sys::{self, Table, Window};

/// An array whose chunks lie in the places of an outer map, without a gap. What has been added stays.
#[derive(Debug)]
pub struct Chunked<V> {
    /// Of a chunk; the name is that of the whole.
    spec: Spec,
    /// Number of a chunk → chunk; read back, it gives the chunk's id.
    places: Table<u32, u32>,
    chunks: Vec<Table<u32, V>>,
}

impl<V: Abi + Sync> Chunked<V> {
    /// Opens the chunks that are there, and pins those that an agent without a bpffs has made.
    pub fn open(places: Table<u32, u32>, spec: Spec, pins: &Pins) -> Result<Self, DatapathError> {
        let mut chunks = Vec::new();
        for number in 0..places.max_entries() {
            let Some(id) = places.get(&number).map_err(failed("read", spec.name))? else { break };
            let fd = pins.inner(id, &pins.chunk(spec.name, number))?.map_err(failed("read", spec.name))?;
            chunks.push(Table::new(fd).map_err(failed("read", spec.name))?);
        }
        let mut array = Self { spec, places, chunks };
        // Where nothing is pinned for good it is the map of programs that are to be replaced, and older than the chunks.
        if array.chunks.is_empty() || !pins.is_private() && !pins.is_unfinished() {
            array.take_over(pins)?;
        }
        Ok(array)
    }

    /// Copies what an agent has left to which the array was one map. Its pin goes last: whoever is killed begins anew.
    fn take_over(&mut self, pins: &Pins) -> Result<(), DatapathError> {
        let (path, failed) = (pins.map(self.spec.name), failed("take over", self.spec.name));
        let fits =
            |fd: &OwnedFd| sys::map_info(fd.as_fd()).is_ok_and(|info| self.spec.conflict(&info).is_none());
        let Some(fd) = Pins::open(&path)?.filter(fits) else { return Ok(()) };
        let whole = Table::<u32, V>::new(fd).map_err(&failed)?;
        let whole =
            Window::open(whole.fd(), 0..whole.max_entries() as usize * Self::WORDS).map_err(&failed)?;
        let each = self.words();
        let used = whole.words().iter().rposition(|word| word.load(Ordering::Relaxed) != 0);
        let parts: Vec<_> =
            whole.words().get(..used.map_or(0, |last| last + 1)).unwrap_or_default().chunks(each).collect();
        let fill = |number: u32, chunk: &Table<u32, V>| {
            let window = Window::open(chunk.fd(), 0..each)?;
            let part = parts.get(number as usize).copied().unwrap_or_default();
            window
                .words()
                .iter()
                .zip(part)
                .for_each(|(to, from)| to.store(from.load(Ordering::Relaxed), Ordering::Release));
            Ok(())
        };
        for (number, chunk) in (0..).zip(&self.chunks) {
            fill(number, chunk).map_err(&failed)?;
        }
        self.add(parts.len() as u32, pins, fill)?;
        unlink(&path)
    }

    /// Elements of a chunk.
    fn length(&self) -> u32 {
        self.spec.entries.unwrap_or(1)
    }

    /// The most elements that there can be.
    pub fn most(&self) -> u32 {
        self.places.max_entries().saturating_mul(self.length())
    }

    pub fn chunks(&self) -> &[Table<u32, V>] {
        &self.chunks
    }

    /// An element; `None` where there is no chunk yet.
    pub fn get(&self, at: u32) -> io::Result<Option<V>> {
        let chunk = self.chunks.get((at / self.length()) as usize);
        Ok(chunk.map(|chunk| chunk.get(&(at % self.length()))).transpose()?.flatten())
    }

    /// Elements that there are.
    pub fn elements(&self) -> u32 {
        (self.chunks.len() as u32).saturating_mul(self.length())
    }

    /// Adds chunks up to the one that this element is in.
    pub fn reach(&mut self, at: u32, pins: &Pins) -> Result<(), DatapathError> {
        self.add(at / self.length() + 1, pins, |_, _| Ok(()))
    }

    /// Sees to it that there are so many chunks. Each is pinned and filled before programs see it.
    fn add(
        &mut self,
        count: u32,
        pins: &Pins,
        fill: impl Fn(u32, &Table<u32, V>) -> io::Result<()>,
    ) -> Result<(), DatapathError> {
        let failed = |operation| failed(operation, self.spec.name);
        let numbers: Vec<u32> = (self.chunks.len() as u32..count).collect();
        let mut chunks = Vec::with_capacity(numbers.len());
        for &number in &numbers {
            let fd = self.spec.make(self.spec.name, self.length()).map_err(failed("create a chunk of"))?;
            pins.keep(fd.as_fd(), &pins.chunk(self.spec.name, number))?;
            let chunk = Table::new(fd).map_err(failed("open a chunk of"))?;
            fill(number, &chunk).map_err(failed("fill a chunk of"))?;
            chunks.push(chunk);
        }
        let fds: Vec<_> = chunks.iter().map(Table::fd).collect();
        put(&self.places, &numbers, &fds).map_err(failed("add a chunk to"))?;
        self.chunks.extend(chunks);
        Ok(())
    }

    /// The memory of all elements, of an array that can be mapped.
    pub fn windows(&self) -> io::Result<Windows> {
        let each = self.words();
        let windows: io::Result<_> =
            self.chunks.iter().map(|chunk| Window::open(chunk.fd(), 0..each)).collect();
        Ok(Windows { windows: windows?, each })
    }

    /// 64-bit words of an element.
    const WORDS: usize = size_of::<V>() / size_of::<u64>();

    /// Those of a chunk.
    fn words(&self) -> usize {
        self.length() as usize * Self::WORDS
    }

    /// The items, which `at` gives their elements' places, by the chunks that these are in. An error: there is no such chunk.
    fn runs<'a, T>(
        &'a self,
        items: &'a [T],
        at: &'a impl Fn(&T) -> u32,
    ) -> impl Iterator<Item = Result<(&'a Table<u32, V>, &'a [T]), DatapathError>> {
        let number = move |item: &T| at(item) / self.length();
        items.chunk_by(move |a, b| number(a) == number(b)).map(move |run| {
            let chunk = run.first().and_then(|item| self.chunks.get(number(item) as usize));
            Ok((chunk.ok_or_else(|| self.missing())?, run))
        })
    }

    /// An element is to be written that no chunk has.
    fn missing(&self) -> DatapathError {
        failed("write", self.spec.name)(io::ErrorKind::NotFound.into())
    }

    /// Writes elements whose chunks are there; an item without a value is passed over.
    pub fn set_all<T>(
        &self,
        items: &[T],
        at: impl Fn(&T) -> u32,
        value: impl Fn(&T) -> Option<V>,
    ) -> Result<(), DatapathError> {
        for run in self.runs(items, &at) {
            let (chunk, run) = run?;
            let (mut places, mut values) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
            for item in run {
                let Some(value) = value(item) else { continue };
                places.push(at(item) % self.length());
                values.push(value);
            }
            set_all(chunk, &places, &values).map_err(failed("write", self.spec.name))?;
        }
        Ok(())
    }

    /// Shows the words of these elements, which are mapped chunk by chunk: `write` gets an item and its element's words.
    pub fn write<T>(
        &mut self,
        items: &[T],
        pins: &Pins,
        at: impl Fn(&T) -> u32,
        write: impl Fn(&T, &[AtomicU64]),
    ) -> Result<(), DatapathError> {
        let Some(last) = items.iter().map(&at).max() else { return Ok(()) };
        self.reach(last, pins)?;
        for run in self.runs(items, &at) {
            let (chunk, run) = run?;
            let places = || run.iter().map(|item| at(item) % self.length());
            let (first, last) = places().min().zip(places().max()).ok_or_else(|| self.missing())?;
            let range = first as usize * Self::WORDS..(last as usize + 1) * Self::WORDS;
            let window = Window::open(chunk.fd(), range).map_err(failed("map", self.spec.name))?;
            for item in run {
                let words = window.words();
                let from = (at(item) % self.length() - first) as usize * Self::WORDS;
                write(item, words.get(from..from + Self::WORDS).ok_or_else(|| self.missing())?);
            }
        }
        Ok(())
    }
}

/// The memory of all chunks of an array.
#[derive(Debug)]
pub struct Windows {
    windows: Vec<Window>,
    /// Words of a chunk.
    each: usize,
}

impl Windows {
    /// A word, by its place in the whole.
    pub fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.windows.get(at / self.each)?.word(at % self.each)
    }

    /// All of them.
    pub fn words(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.windows.iter().map(Window::words)
    }
}
