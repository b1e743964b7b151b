use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::bed::{Bed, Client, Frontend};
use super::kubectl::until;

/// Where clients write down what they are told.
const DIRECTORY: &str = "/tmp/sluice-suite";
/// Nobody asks longer than this, in seconds, whatever becomes of the suite.
const LONGEST: u32 = 1200;

/// `hold FILE QUESTION NC…`: asks once a second over one connection, or from one port, and keeps the answers; when the
/// connection ends, says so. `ask FILE ADDRESS PORT`: asks by UDP, each time from another port, and keeps whether there was an
/// answer; where there was none, of whom and when it was asked. Ten seconds are for a server that a busy machine does not let run. Both go on
/// while the shell's own mark is there.
const FUNCTIONS: &str = r#"
mark=mark.$$; touch $mark
going() { i=$((i + 1)); [ -e $mark ] && [ $i -lt LONGEST ]; }
hold() {
  file=$1 question=$2; shift 2
  ( (i=0; while going; do printf "$question"; sleep 1; done) | nc -w 30 "$@" > $file
    echo > $file.end ) >/dev/null 2>&1 </dev/null &
}
ask() {
  ( i=0; while going; do
    when=$(date +%T)
    if printf hostname | nc -u -W 1 -w 10 $2 $3 | grep -q .; then echo yes; else echo "no $2 $3 at $when"; fi >> $1; sleep 1
  done ) >/dev/null 2>&1 </dev/null &
}
"#;
const TCP: &str = r"'GET /hostname HTTP/1.1\r\nHost: h\r\n\r\n'";
const UDP: &str = "hostname";

/// Connections and UDP flows that are open and in use, and clients that ask anew by UDP all the time.
#[derive(Debug)]
pub struct Held {
    name: &'static str,
    /// Each client with the number of its flows.
    clients: Vec<(Client, usize)>,
}

/// The shell's line that ends what a client [holds](Held).
pub(super) fn end() -> String {
    format!("rm -f {DIRECTORY}/mark.*")
}

impl Held {
    /// Opens flows from each client to all that it [may dial](Bed::frontends): for each frontend so many by TCP and by UDP. What was held before
    /// ends: a machine that bears it all answers late.
    ///
    /// # Errors
    /// One is not answered.
    pub fn open(bed: &Bed, name: &'static str, (tcp, udp): (usize, usize)) -> Result<Self> {
        let mut clients = Vec::new();
        for client in &bed.clients {
            let functions = FUNCTIONS.replace("LONGEST", &LONGEST.to_string());
            let mut line = end();
            line += &format!("; mkdir -p {DIRECTORY} && cd {DIRECTORY} && rm -f *.{name}*\n{functions}");
            let mut count = 0;
            for Frontend { address, tcp: tcp_port, udp: udp_port } in bed.frontends(client) {
                let by_tcp = (0..tcp).map(|_| format!("{TCP} {address} {tcp_port}"));
                let by_udp = (0..udp).map(|_| format!("{UDP} -u {address} {udp_port}"));
                for flow in by_tcp.chain(by_udp) {
                    line += &format!("hold held.{name}.{count} {flow}\n");
                    count += 1;
                }
                line += &format!("ask asked.{name} {address} {udp_port}\n");
            }
            bed.shell(client, &line)?;
            clients.push((client.clone(), count));
        }
        let held = Self { name, clients };
        held.live(bed)?;
        Ok(held)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.clients.iter().map(|(_, count)| count).sum()
    }

    /// Every one of them is open and goes on being answered, and nothing that was asked anew by UDP stayed without an answer.
    ///
    /// # Errors
    /// Which does not.
    pub fn live(&self, bed: &Bed) -> Result<()> {
        let before = self.answers(bed)?;
        until(30, "the flows that are held are answered again", || {
            let mut silent = self.answers(bed)?;
            silent.retain(|flow, told| before.get(flow).is_some_and(|before| *told <= *before));
            ensure!(silent.is_empty(), "{} of {} are not: {silent:?}", silent.len(), self.count());
            Ok(true)
        })?;
        for (client, _) in &self.clients {
            let who = &client.name;
            let told = bed.shell(client, &format!("cd {DIRECTORY}; cat asked.{}", self.name))?;
            let (lost, answered): (Vec<_>, Vec<_>) = told.lines().partition(|line| line.starts_with("no"));
            ensure!(!answered.is_empty(), "{who} has had no answer by UDP");
            let (count, asked) = (lost.len(), lost.len() + answered.len());
            ensure!(lost.is_empty(), "{count} of {asked} datagrams from {who} were not answered: {lost:?}");
        }
        Ok(())
    }

    /// Ends them, and waits until each has: TCP connections from the client's side, while their endpoints are there.
    ///
    /// # Errors
    /// One does not end.
    pub fn finish(self, bed: &Bed) -> Result<()> {
        self.clients.iter().try_for_each(|(client, _)| bed.shell(client, &end()).map(drop))?;
        for (client, count) in &self.clients {
            let line = format!("ls {DIRECTORY}/held.{}.*.end 2> /dev/null | wc -l", self.name);
            until(90, "the flows that were held have ended", || {
                Ok(bed.shell(client, &line)?.trim() == count.to_string())
            })?;
        }
        Ok(())
    }

    /// Bytes that each flow was told, and an error where one has ended.
    fn answers(&self, bed: &Bed) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for (client, count) in &self.clients {
            let who = &client.name;
            let line = format!("cd {DIRECTORY}; wc -c held.{}.* | grep -v total", self.name);
            let told = bed.shell(client, &line)?;
            let files = told.lines().filter_map(|line| line.trim().split_once(' '));
            let (ended, open): (Vec<_>, Vec<_>) = files.partition(|(_, file)| file.ends_with(".end"));
            ensure!(ended.is_empty(), "{} of {count} flows from {who} have ended: {ended:?}", ended.len());
            ensure!(open.len() == *count, "{} of {count} flows from {who} are there", open.len());
            for (bytes, file) in open {
                all.insert(format!("{who} {file}"), bytes.parse()?);
            }
        }
        Ok(all)
    }
}
