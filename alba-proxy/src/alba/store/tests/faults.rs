//! One fault at a time, and what becomes of it.

use super::*;

fn away() -> OsdFaults {
    OsdFaults { away: true, ..OsdFaults::default() }
}

#[tokio::test(start_paused = true)]
async fn any_two_disks_or_any_node_may_be_lost() {
    for (lost, wiped) in
        [(vec![0, 5], false), (vec![3, 7], true), (vec![4, 5, 6, 7], false), (vec![11, 0], true)]
    {
        let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 10).await;
        for n in 0..8 {
            backend.store.put(&format!("k{n}"), content(100_000, n), Precondition::IfAbsent).await.unwrap();
        }
        for n in lost {
            match wiped {
                true => backend.osds[n].wipe(),
                false => backend.osds[n].set_faults(away()),
            }
        }
        for n in 0..8 {
            let key = format!("k{n}");
            assert_eq!(backend.store.get(&key).await.unwrap(), content(100_000, n));
            assert_eq!(
                backend.store.get_range(&key, 99_000..99_500).await.unwrap(),
                content(100_000, n).slice(99_000..99_500)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_goes_around_disks_that_are_away_full_or_read_only() {
    let full = OsdFaults { room: Some(0), ..OsdFaults::default() };
    let read_only = OsdFaults { read_only: true, ..OsdFaults::default() };
    for faults in [away(), full, read_only] {
        let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 11).await;
        for osd in [0, 4] {
            backend.osds[osd].set_faults(faults.clone());
        }
        for n in 0..20 {
            let key = format!("k{n}");
            backend.store.put(&key, content(30_000, n), Precondition::IfAbsent).await.unwrap();
            let record = backend.record(&key).await;
            assert_eq!(record.stored(), 6, "{faults:?}");
            for node in 0..3 {
                let on = |p: &&crate::alba::records::Place| (p.osd.0 - 1) / 4 == node;
                assert!(record.places.iter().flatten().filter(on).count() <= 2, "too many on a node");
            }
        }
        assert!(backend.osds[0].values().is_empty() && backend.osds[4].values().is_empty());
        assert!(backend.records.to_repair(None, 10).await.unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_fragment_that_failed_is_written_again() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 12).await;
    // Nobody knows yet that it is away.
    backend.osds[2].set_faults(away());
    for n in 0..12 {
        backend.store.put(&format!("k{n}"), content(30_000, n), Precondition::IfAbsent).await.unwrap();
    }
    backend.settle().await;
    let fragments = backend.values() / 2;
    assert_eq!(fragments, 12 * 6, "fragments that are named by nothing");
    assert!(backend.osds[2].tally().failed >= 1);
}

#[tokio::test(start_paused = true)]
async fn below_the_first_policy_the_next_one_is_used_and_below_the_last_a_put_waits_and_goes_on_by_itself() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2", "2,2,4,2"], 2), 13).await;
    for n in 0..4 {
        backend.osds[n].set_faults(away());
    }
    backend.view.refresh().await;
    backend.store.put("lesser", content(50_000, 1), Precondition::IfAbsent).await.unwrap();
    assert_eq!(backend.record("lesser").await.shape.policy, policy("2,2,4,2"));
    for n in 4..8 {
        backend.osds[n].set_faults(away());
    }
    backend.view.refresh().await;
    let put = backend.store.put("waits", content(50_000, 2), Precondition::IfAbsent);
    let back = async {
        backend.clock.sleep(Duration::from_secs(5)).await;
        let why = backend.store.waiting().unwrap();
        assert!(why.contains("(2,2,4,2)") && why.contains("8 do not answer"), "{why}");
        // Reads go on.
        assert_eq!(backend.store.get("lesser").await.unwrap(), content(50_000, 1));
        backend.osds.iter().for_each(|osd| osd.set_faults(OsdFaults::default()));
    };
    let (put, ()) = tokio::join!(put, back);
    put.unwrap();
    assert_eq!(backend.store.waiting(), None);
    assert_eq!(backend.record("waits").await.shape.policy, policy("4,2,6,2"));
}

#[tokio::test(start_paused = true)]
async fn a_put_that_waits_too_long_says_why() {
    let backend = Backend::new(3, 1, preset(&["2,1,3,1"], 1), 14).await;
    backend.osds[0].set_faults(away());
    backend.view.refresh().await;
    let error = backend.store.put("key", content(5000, 1), Precondition::IfAbsent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains("1 do not answer") && error.message().contains("by itself"), "{error}");
    assert_eq!(backend.store.head("key").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_costs_little_and_is_soon_left_alone() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 15).await;
    for osd in &backend.osds {
        osd.set_faults(OsdFaults { latency: Duration::from_micros(300), ..OsdFaults::default() });
    }
    let data = content(200_000, 1);
    backend.store.put("key", data.clone(), Precondition::IfAbsent).await.unwrap();
    let slow = backend.record("key").await.places[0].unwrap().osd;
    backend.osd(slow).set_faults(OsdFaults { latency: Duration::from_secs(1), ..OsdFaults::default() });
    let timed = async |n: usize| {
        let began = backend.clock.now();
        for _ in 0..n {
            assert_eq!(backend.store.get_range("key", 0..4096).await.unwrap(), data.slice(0..4096));
        }
        (backend.clock.now() - began) / n as u32
    };
    let hedged = timed(1).await;
    assert!(hedged < Duration::from_millis(30), "{hedged:?}");
    let mut puts = Vec::new();
    for n in 0..30 {
        let began = backend.clock.now();
        backend.store.put(&format!("k{n}"), content(30_000, n), Precondition::IfAbsent).await.unwrap();
        puts.push(backend.clock.now() - began);
    }
    assert!(puts.iter().all(|took| *took < Duration::from_millis(900)), "{puts:?}");
    assert!(puts[15..].iter().all(|took| *took < Duration::from_millis(10)), "{puts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_lies_is_found_out_and_what_it_had_is_to_be_repaired() {
    let flips = OsdFaults { flip_per_mille: 1000, ..OsdFaults::default() };
    let wrong = OsdFaults { wrong_object_per_mille: 1000, ..OsdFaults::default() };
    for (faults, encryption) in
        [(flips.clone(), Encryption::None), (wrong, Encryption::None), (flips, Encryption::ChaCha20Poly1305)]
    {
        let mut preset = preset(&["4,2,6,2"], 2);
        preset.encryption = encryption;
        let backend = Backend::new(3, 4, preset, 16).await;
        for key in ["other", "key"] {
            backend.store.put(key, content(200_000, 3), Precondition::IfAbsent).await.unwrap();
        }
        let other = backend.record("other").await;
        let record = backend.record("key").await;
        let liar = record.places[1].unwrap().osd;
        let can_lie = faults.flip_per_mille > 0 || other.places.iter().flatten().any(|p| p.osd == liar);
        backend.osd(liar).set_faults(faults);
        let part = backend.store.get_range("key", 60_000..64_000).await.unwrap();
        assert_eq!(part, content(200_000, 3).slice(60_000..64_000));
        assert_eq!(backend.store.get("key").await.unwrap(), content(200_000, 3));
        if can_lie {
            assert!(backend.osd(liar).tally().lies > 0);
            assert_eq!(backend.records.to_repair(None, 10).await.unwrap(), [(1, "key".to_string())]);
            assert!(backend.view.avoided(liar));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_with_too_few_fragments_is_corrupt_and_one_whose_disks_are_away_is_not() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 17).await;
    backend.store.put("key", content(50_000, 1), Precondition::IfAbsent).await.unwrap();
    let places: Vec<_> = backend.record("key").await.places.iter().flatten().map(|p| p.osd).collect();
    for osd in &places[..3] {
        backend.osd(*osd).set_faults(away());
    }
    assert_eq!(backend.store.get("key").await.unwrap_err().kind, ErrorKind::Unavailable);
    for osd in &places[..3] {
        backend.osd(*osd).set_faults(OsdFaults::default());
        backend.osd(*osd).wipe();
    }
    let error = backend.store.get("key").await.unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message().contains("3 of 4"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_follows_after_success_is_named_by_the_record_and_until_then_in_the_repair_index() {
    let backend = Backend::new(3, 4, preset(&["4,2,5,2"], 1), 18).await;
    for osd in &backend.osds {
        osd.set_faults(OsdFaults { latency: Duration::from_millis(1), ..OsdFaults::default() });
    }
    backend.osds[1].set_faults(OsdFaults { latency: Duration::from_millis(60), ..OsdFaults::default() });
    let mut early = 0;
    for n in 0..10 {
        let (key, began) = (format!("k{n}"), backend.clock.now());
        backend.store.put(&key, content(40_000, n), Precondition::IfAbsent).await.unwrap();
        assert!(backend.clock.now() - began < Duration::from_millis(30));
        if backend.record(&key).await.stored() == 5 {
            early += 1;
            assert!(backend.records.to_repair(None, 100).await.unwrap().contains(&(1, key)));
        }
    }
    assert!(early > 0, "no put succeeded early");
    backend.settle().await;
    for n in 0..10 {
        assert_eq!(backend.record(&format!("k{n}")).await.stored(), 6);
    }
    assert!(backend.records.to_repair(None, 100).await.unwrap().is_empty());
    assert_eq!(backend.values(), 120);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_slept_through_a_collection_begins_anew() {
    // At the disks, and between them and the record.
    for pause in [20, 65] {
        let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 19).await;
        backend.store.put("first", content(5000, 1), Precondition::IfAbsent).await.unwrap();
        for osd in &backend.osds {
            osd.set_faults(OsdFaults { latency: Duration::from_millis(40), ..OsdFaults::default() });
        }
        let put = backend.store.put("key", content(50_000, 2), Precondition::IfAbsent);
        let collect = async {
            backend.clock.sleep(Duration::from_millis(pause)).await;
            backend.osds.iter().for_each(|osd| osd.set_faults(OsdFaults::default()));
            backend.store.begin_epoch().await.unwrap();
            backend.store.collect().await.unwrap();
        };
        let (put, ()) = tokio::join!(put, collect);
        put.unwrap();
        assert_eq!(backend.store.get("key").await.unwrap(), content(50_000, 2));
        let places = backend.record("key").await.places;
        assert!(places.iter().flatten().all(|p| p.epoch == 2), "names what was collected");
        assert_eq!(backend.store.get("first").await.unwrap(), content(5000, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_takes_what_no_record_names_and_nothing_else() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 20).await;
    backend.store.put("key", content(150_000, 1), Precondition::IfAbsent).await.unwrap();
    // What a put leaves that died before its record.
    let mut left = backend.record("key").await;
    left.shape.id = ObjectId(77);
    let header = crate::alba::layout::FragmentHeader {
        key: FragmentKey {
            namespace: backend.records.namespace(),
            epoch: 1,
            id: ObjectId(77),
            fragment: 3,
            version: 0,
        },
        name: "gone".into(),
        put_at: 1,
        crcs: left.crcs.clone(),
        shape: left.shape.clone(),
    };
    backend.osds[0].tamper(&header.key.header(), Some(header.encode()));
    backend.osds[0].tamper(&header.key.value(0), Some(Bytes::from_static(b"some data")));
    assert_eq!(backend.store.collect().await.unwrap().fragments, 0, "its epoch is open");
    backend.store.begin_epoch().await.unwrap();
    assert_eq!(backend.store.collect().await.unwrap().fragments, 1);
    assert!(!backend.osds[0].values().contains_key(&header.key.value(0)));
    assert_eq!(backend.store.get("key").await.unwrap(), content(150_000, 1));
}

#[tokio::test(start_paused = true)]
async fn a_disk_takes_nothing_of_an_epoch_that_is_over_there() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 21).await;
    let closed = FragmentKey::closed(backend.records.namespace(), 1);
    backend.osds.iter().for_each(|osd| osd.tamper(&closed, Some(Bytes::new())));
    let put = backend.store.put("key", content(50_000, 2), Precondition::IfAbsent);
    let begin = async {
        backend.clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(backend.values(), 12, "fragments of an epoch that is closed");
        backend.store.begin_epoch().await.unwrap();
    };
    let (put, ()) = tokio::join!(put, begin);
    put.unwrap();
    assert!(backend.record("key").await.places.iter().flatten().all(|p| p.epoch == 2));
}

/// Two proxies: what one deletes the other reads no more, but for a moment, and never anything else.
#[tokio::test(start_paused = true)]
async fn a_record_in_memory_leads_to_what_was_put_or_to_nothing() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 22).await;
    let other = AlbaStore::new(Parts {
        records: backend.records.clone(),
        preset: preset(&["4,2,6,2"], 2),
        keys: Vec::new(),
        osds: backend.view.clone(),
        clock: backend.clock.clone(),
        draw: draw(99),
        name: "another proxy".into(),
    })
    .unwrap();
    let data = content(50_000, 1);
    backend.store.put("key", data.clone(), Precondition::IfAbsent).await.unwrap();
    assert_eq!(backend.store.get_range("key", 10..20).await.unwrap(), data.slice(10..20));
    other.delete("key").await.unwrap();
    let new = content(50_000, 2);
    other.put("key", new.clone(), Precondition::IfAbsent).await.unwrap();
    backend.clock.sleep(Duration::from_secs(1)).await;
    // The old fragments are gone, so the record is looked up again.
    assert_eq!(backend.store.get_range("key", 10..20).await.unwrap(), new.slice(10..20));
    for osd in &backend.osds {
        osd.set_faults(OsdFaults { room: Some(0), ..OsdFaults::default() });
    }
    other.delete("key").await.unwrap();
    backend.clock.sleep(Duration::from_secs(11)).await;
    assert_eq!(backend.store.get_range("key", 10..20).await.unwrap_err().kind, ErrorKind::NotFound);
}
