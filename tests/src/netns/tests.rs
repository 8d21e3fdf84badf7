use super::*;
use crate::time::eventually;
use crate::tools::{command, run_within};
use anyhow::ensure;
use std::net::TcpListener;

/// A listener in a node's network.
fn listener(net: &Net, node: usize) -> TcpListener {
    let (file, host) = (net.name(node), net.place(node).host().to_string());
    let listen = move || {
        let file = File::open(PathBuf::from(FOLDER).join(file)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        TcpListener::bind((host.as_str(), 7000)).unwrap()
    };
    std::thread::spawn(listen).join().unwrap()
}

/// Whether a connection from one node to another is made within a second.
fn reaches(net: &Net, from: usize, to: usize) -> bool {
    let line = format!("timeout 1 bash -c 'echo > /dev/tcp/{}/7000'", net.place(to).host());
    let words = net.place(from).inside();
    let mut program = command(&words[0]);
    program.args(&words[1..]).args(["sh", "-c", &line]);
    run_within(10, program).unwrap().status.success()
}

#[test]
fn links_are_cut_one_by_one_and_nothing_stays() {
    if !crate::tools::is_root() {
        eprintln!("network namespaces want root: not looked at");
        return;
    }
    let net = Net::new(3).unwrap();
    let listeners: Vec<_> = (0..3).map(|node| listener(&net, node)).collect();
    assert!(reaches(&net, 0, 1) && reaches(&net, 2, 1) && reaches(&net, 1, 2));
    // One way is enough that no connection is made in either direction; others do not notice.
    net.cut(0, 1).unwrap();
    assert!(!reaches(&net, 0, 1) && !reaches(&net, 1, 0) && reaches(&net, 0, 2) && reaches(&net, 2, 1));
    net.heal().unwrap();
    assert!(reaches(&net, 0, 1) && reaches(&net, 1, 0));
    net.isolate(2).unwrap();
    assert!(!reaches(&net, 0, 2) && !reaches(&net, 2, 1) && reaches(&net, 1, 0));
    // The test itself still reaches it.
    net.place(2).connect(7000).unwrap();
    let names: Vec<_> = (0..3).map(|node| net.name(node)).chain([net.hub()]).collect();
    drop((listeners, net));
    eventually("the namespaces are gone", 10, || {
        ensure!(names.iter().all(|name| !PathBuf::from(FOLDER).join(name).exists()), "{names:?}");
        Ok(())
    })
    .unwrap();
}
