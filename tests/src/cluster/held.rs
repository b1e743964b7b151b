use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::bed::{Bed, Client};

/// Asks twice a second over one connection, and counts; when the connection ends, says so.
const TCP: &str = r#"hold() {
  ( (while :; do printf 'GET /hostname HTTP/1.1\r\nHost: h\r\n\r\n'; sleep 0.5; done) | nc $2 $3 > /tmp/held.$1
    echo ended > /tmp/held.$1.end ) >/dev/null 2>&1 </dev/null &
}
"#;

/// Asks once a second, each time from another port, and counts answers and what was not answered.
const UDP: &str = r#"( while :; do
  if echo hostname | nc -u -w1 $VIP 81 | grep -q .; then echo yes; else echo no; fi >> /tmp/asked; sleep 0.2
done ) >/dev/null 2>&1 </dev/null &
"#;

/// TCP connections that are open and in use, and somebody who asks by UDP.
#[derive(Debug)]
pub struct Held {
    name: &'static str,
    /// Each client with the number of its connections.
    clients: Vec<(Client, usize)>,
}

impl Held {
    /// Opens `each` connections from each client to the Service's ClusterIP, and to the NodePort of every other node.
    /// `own`: to its own node's as well.
    ///
    /// # Errors
    /// One is not answered.
    pub fn open(bed: &Bed, name: &'static str, each: usize) -> Result<Self> {
        let mut clients = Vec::new();
        for client in &bed.clients {
            let mut line = TCP.to_owned();
            let others = bed.nodes.iter().filter(|(node, _)| *node != client.node);
            let node_ports = others.map(|(_, address)| (address.as_str(), bed.node_port));
            let mut count = 0;
            for (address, port) in [(bed.cluster_ip.as_str(), 80)].into_iter().chain(node_ports) {
                for _ in 0..each {
                    line += &format!("hold {name}{count} {address} {port}\n");
                    count += 1;
                }
            }
            line +=
                &UDP.replace("$VIP", &bed.cluster_ip).replace("/tmp/asked", &format!("/tmp/asked.{name}"));
            bed.shell(client, &line)?;
            clients.push((client.clone(), count));
        }
        let held = Self { name, clients };
        sleep(Duration::from_secs(3));
        held.live(bed)?;
        Ok(held)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.clients.iter().map(|(_, count)| count).sum()
    }

    /// Every one of them is open and goes on being answered, and nothing that was asked by UDP stayed without an answer.
    ///
    /// # Errors
    /// Which does not.
    pub fn live(&self, bed: &Bed) -> Result<()> {
        let before = self.answers(bed)?;
        sleep(Duration::from_secs(3));
        let mut silent: BTreeMap<String, u64> = self.answers(bed)?;
        silent.retain(|connection, answers| before.get(connection).is_none_or(|before| *answers <= *before));
        ensure!(silent.is_empty(), "of {} connections are answered no more: {silent:?}", self.count());
        for (client, _) in &self.clients {
            let file = format!("/tmp/asked.{}", self.name);
            let lost = bed.shell(client, &format!("grep -c no {file} || true"))?;
            let asked = bed.shell(client, &format!("grep -c . {file}"))?;
            ensure!(
                lost.trim() == "0",
                "{} of {} datagrams from {} were not answered",
                lost.trim(),
                asked.trim(),
                client.pod
            );
        }
        Ok(())
    }

    fn answers(&self, bed: &Bed) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for (client, count) in &self.clients {
            let name = self.name;
            let line = format!(
                "cd /tmp; for f in held.{name}*; do echo $f $(grep -c '200 OK' $f); done; ls | grep '^held.{name}.*end' || true"
            );
            let told = bed.shell(client, &line)?;
            let ended: Vec<&str> = told.lines().filter(|line| line.ends_with(".end")).collect();
            ensure!(
                ended.is_empty(),
                "{} of {count} connections from {} have ended: {ended:?}",
                ended.len(),
                client.pod
            );
            let mut counts = 0;
            for (file, answers) in told.lines().filter_map(|line| line.split_once(' ')) {
                all.insert(format!("{} {file}", client.pod), answers.trim().parse()?);
                counts += 1;
            }
            ensure!(counts == *count, "{counts} of {count} connections from {} are there", client.pod);
        }
        Ok(all)
    }
}
