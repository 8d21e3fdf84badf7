//! A network of namespaces in which each link is cut by itself, one way or both.
//!
//! Each node has a namespace with one interface, and all of them meet in a namespace that forwards what they send. A cut
//! is a rule there that swallows what goes from one node to another: nobody is told, as with a cable that is pulled.
//! The meeting place is also where the test stands: whoever asks from there reaches every node, whatever is cut.

use crate::tools::run;
use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";
/// What all names begin with; the number of the process follows.
const PREFIX: &str = "srtest";

/// A network; it is gone when this is dropped.
pub struct Net {
    /// Begins the name of each of its namespaces.
    stem: String,
    nodes: usize,
    cut: Mutex<BTreeSet<(usize, usize)>>,
}

/// Where a process lives: a namespace, or this machine's own network.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Its namespace, and the one that the test asks it from.
    names: Option<(String, String)>,
    /// The address that others reach it at.
    host: Option<String>,
}

impl Place {
    /// The address that it listens on and is reached at.
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("127.0.0.1")
    }

    /// Whether it has a network of its own.
    pub fn is_apart(&self) -> bool {
        self.names.is_some()
    }

    /// Words that begin a command line of something that lives here.
    pub fn inside(&self) -> Vec<String> {
        self.names.as_ref().map(|(inside, _)| enter(inside)).unwrap_or_default()
    }

    /// Words that begin a command line of something that asks what lives here.
    pub fn beside(&self) -> Vec<String> {
        self.names.as_ref().map(|(_, beside)| enter(beside)).unwrap_or_default()
    }

    /// Connects the test to a port of it.
    pub fn connect(&self, port: u16) -> Result<TcpStream> {
        let address = format!("{}:{port}", self.host());
        let Some((_, beside)) = self.names.clone() else { return Ok(TcpStream::connect(address)?) };
        // A thread of its own, which changes its network and ends; the socket stays where it was made.
        let connect = move || {
            let file = File::open(PathBuf::from(FOLDER).join(beside))?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            anyhow::Ok(TcpStream::connect(address)?)
        };
        std::thread::spawn(connect).join().unwrap_or_else(|_| bail!("connecting panicked"))
    }
}

fn enter(name: &str) -> Vec<String> {
    ["ip", "netns", "exec", name].map(str::to_string).to_vec()
}

fn ip(words: &str) -> Result<()> {
    run("ip", words.split_whitespace()).map(drop)
}

/// Removes what a test left that was killed: its process is gone.
fn sweep() {
    for entry in std::fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !PathBuf::from(format!("/proc/{process}")).exists()) {
            // Another test may be at it, too.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

impl Net {
    /// A network of so many nodes, each of which reaches each other one.
    pub fn new(nodes: usize) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !crate::tools::is_root() {
            bail!("this test makes network namespaces: run it as root");
        }
        crate::tools::need(&["ip"])?;
        sweep();
        let stem = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // From here on the end of this removes whatever there is of it.
        let net = Self { stem, nodes, cut: Mutex::default() };
        net.build().context("making network namespaces (is this a container that may not?)")?;
        Ok(net)
    }

    fn build(&self) -> Result<()> {
        let hub = self.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} addr add {}/32 dev lo", address(255)))?;
        let forward = "for f in forwarding rp_filter send_redirects; do for d in all default; do \
                       echo $([ $f = forwarding ] && echo 1 || echo 0) > /proc/sys/net/ipv4/conf/$d/$f; done; done";
        run("ip", ["netns", "exec", &hub, "sh", "-ec", forward])?;
        for node in 0..self.nodes {
            let (name, host) = (self.name(node), address(node));
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {hub} link add n{node} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {hub} link set n{node} up"))?;
            ip(&format!("-n {hub} route add {host}/32 dev n{node}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set dev eth0 up"))?;
            ip(&format!("-n {name} addr add {host}/32 dev eth0"))?;
            ip(&format!("-n {name} route add {}/32 dev eth0", address(255)))?;
            ip(&format!("-n {name} route add default via {}", address(255)))?;
        }
        Ok(())
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.stem)
    }

    fn name(&self, node: usize) -> String {
        format!("{}-{node}", self.stem)
    }

    /// Where a node is.
    pub fn place(&self, node: usize) -> Place {
        Place { names: Some((self.name(node), self.hub())), host: Some(address(node)) }
    }

    /// From now on nothing that `from` sends comes to `to`.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        let mut cut = self.cut.lock().unwrap_or_else(|e| e.into_inner());
        if from != to && !cut.contains(&(from, to)) {
            self.rule("add", from, to)?;
            cut.insert((from, to));
        }
        Ok(())
    }

    /// Cuts a link in both directions.
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        self.cut(one, other)?;
        self.cut(other, one)
    }

    /// Cuts all links of a node.
    pub fn isolate(&self, node: usize) -> Result<()> {
        (0..self.nodes).try_for_each(|other| self.part(node, other))
    }

    /// All links are whole again.
    pub fn heal(&self) -> Result<()> {
        let mut cut = self.cut.lock().unwrap_or_else(|e| e.into_inner());
        while let Some((from, to)) = cut.pop_last() {
            self.rule("del", from, to)?;
        }
        Ok(())
    }

    fn rule(&self, verb: &str, from: usize, to: usize) -> Result<()> {
        ip(&format!("-n {} rule {verb} from {} to {} blackhole", self.hub(), address(from), address(to)))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (0..self.nodes).map(|node| self.name(node)).chain([self.hub()]) {
            // One that was never made is no matter, and of others the next test takes care.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn address(node: usize) -> String {
    // Of the documentation's networks: nothing real is hidden, whatever the machine is part of.
    format!("198.51.100.{}", if node == 255 { 254 } else { node + 1 })
}

#[cfg(test)]
#[path = "netns/tests.rs"]
mod tests;
