//! Each test breaks an image in one way and demands that the oracle says so.

use super::*;

const VOLUME: u64 = 0x1111;

/// A volume of four blocks as a list of bytes, with a model beside it.
struct World {
    model: Model,
    image: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self { model: Model::new(VOLUME, 4), image: vec![0; 4 * BLOCK] }
    }

    fn put(&mut self, first: usize, data: &[u8]) {
        self.image[first * BLOCK..first * BLOCK + data.len()].copy_from_slice(data);
    }

    /// Writes, acknowledged and on the image; returns the bytes it replaced.
    fn write(&mut self, block: usize) -> Vec<u8> {
        let before = self.image[block * BLOCK..(block + 1) * BLOCK].to_vec();
        let (ticket, data) = self.model.begin_write(block, 1, 1);
        self.put(block, &data);
        self.model.ack(ticket);
        before
    }
}

#[test]
fn accepts_what_was_acknowledged_and_either_outcome_of_what_was_not() {
    for landed in [false, true] {
        let mut world = World::new();
        world.write(0);
        world.write(1);
        let (_, data) = world.model.begin_write(0, 2, 1);
        if landed {
            world.put(0, &data);
        }
        world.model.settle(&world.image.clone(), Promise::Everything).unwrap();
    }
}

#[test]
fn catches_a_lost_acknowledged_write() {
    let mut world = World::new();
    world.write(2);
    let before = world.write(2);
    world.put(2, &before);
    let faults = world.model.settle(&world.image.clone(), Promise::Everything).unwrap_err();
    assert_eq!(faults.0[0].block, 2);
    assert!(faults.to_string().contains("lost a later acknowledged change"), "{faults}");
}

#[test]
fn catches_a_resurrected_trim() {
    let mut world = World::new();
    world.write(1);
    let ticket = world.model.begin_zero(0, 4);
    world.model.ack(ticket);
    world.model.settle(&world.image.clone(), Promise::Everything).unwrap_err();
    world.image.fill(0);
    world.model.settle(&world.image.clone(), Promise::Everything).unwrap();
}

#[test]
fn catches_torn_misplaced_and_foreign_blocks() {
    let mut world = World::new();
    world.write(0);
    world.write(1);
    let good = world.image.clone();
    world.image[100] ^= 1;
    assert!(world.model.check_read(0, u64::MAX, &world.image).is_err(), "flipped");
    world.image = good.clone();
    world.image.copy_within(0..BLOCK, BLOCK);
    assert!(world.model.check_read(0, u64::MAX, &world.image).is_err(), "misplaced");
    world.image = good;
    let (_, foreign) = Model::new(VOLUME + 1, 4).begin_write(0, 1, 1);
    world.put(0, &foreign);
    assert!(world.model.check_read(0, u64::MAX, &world.image).is_err(), "foreign");
}

#[test]
fn what_was_seen_after_a_crash_may_not_change_afterwards() {
    let mut world = World::new();
    world.write(0);
    let (_, data) = world.model.begin_write(0, 1, 1);
    world.model.settle(&world.image.clone(), Promise::Everything).unwrap();
    world.put(0, &data);
    world.model.settle(&world.image.clone(), Promise::Everything).unwrap_err();
}

#[test]
fn overlapping_requests_may_end_in_either_order_but_not_in_an_older_state() {
    let mut world = World::new();
    let before = world.write(0);
    let (one, first) = world.model.begin_write(0, 1, 1);
    let (two, second) = world.model.begin_write(0, 1, 2);
    world.model.ack(one);
    world.model.ack(two);
    for data in [&first, &second] {
        world.put(0, data);
        world.model.check_read(0, u64::MAX, &world.image).unwrap();
    }
    world.put(0, &before);
    world.model.check_read(0, u64::MAX, &world.image).unwrap_err();
}

#[test]
fn a_prefix_may_lack_the_end_but_has_no_hole_and_holds_what_was_committed() {
    let mut world = World::new();
    let empty = world.image.clone();
    world.write(0);
    let committed = world.model.now();
    let first = world.image.clone();
    world.write(1);
    let second = world.image.clone();
    world.write(2);

    let promise = Promise::PrefixWith(committed);
    for image in [&first, &second, &world.image.clone()] {
        let mut model = Model::new(VOLUME, 4);
        model.blocks = world.model.blocks.clone();
        model.clock = world.model.clock;
        model.settle(image, promise).unwrap();
    }
    let mut hole = world.image.clone();
    hole[BLOCK..2 * BLOCK].fill(0);
    world.model.settle(&hole, promise).unwrap_err();
    world.model.settle(&empty, promise).unwrap_err();
}

#[test]
fn a_read_sees_nothing_older_than_what_was_acknowledged_before_it_was_sent() {
    let mut world = World::new();
    world.write(3);
    let old = world.image.clone();
    world.write(3);
    let issued = world.model.now();
    world.model.check_read(0, issued, &old).unwrap_err();
    world.model.check_read(0, issued, &world.image.clone()).unwrap();
    // A read that was on its way while a write was may see it or not.
    let (ticket, data) = world.model.begin_write(3, 1, 1);
    world.model.ack(ticket);
    world.model.check_read(0, issued, &world.image.clone()).unwrap();
    world.put(3, &data);
    world.model.check_read(0, issued, &world.image.clone()).unwrap();
}
