//! Random changes of a corpus, for the tests that run the fuzz targets without a fuzzer. Each crate's test
//! takes this file in as a module.

use std::path::{Path, PathBuf};

/// What a fuzz target begins with.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder().join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}: no file", folder.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Where the corpora lie.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus")
}

/// Calls `target` with its corpus, and with `rounds` changes of it.
pub fn run(name: &str, target: fn(&[u8]), rounds: usize) {
    let corpus = corpus(name);
    corpus.iter().for_each(|data| target(data));
    target(&[]);
    let mut chance = Chance(name.bytes().fold(0x5eed, |n, b| n << 5 ^ n >> 59 ^ u64::from(b)));
    for round in 0..rounds {
        let data = chance.change(&corpus);
        let outcome = std::panic::catch_unwind(|| target(&data));
        if let Err(panic) = outcome {
            let path = std::env::temp_dir().join(format!("hostile-{name}-{round}"));
            let kept = std::fs::write(&path, &data);
            eprintln!("{name}: the input of round {round} is in {} ({kept:?})", path.display());
            std::panic::resume_unwind(panic);
        }
    }
}

/// A small generator of its own, so that a failure comes back.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// One of `corpus` with a few changes.
    fn change(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut data = corpus[self.below(corpus.len())].clone();
        for _ in 0..1 + self.below(4) {
            self.once(&mut data, corpus);
        }
        data
    }

    /// Where a change is made: as often at the ends, where headers and footers are, as anywhere.
    fn place(&mut self, len: usize) -> usize {
        match self.below(3) {
            0 => self.below(len.min(160)),
            1 => len - 1 - self.below(len.min(160)),
            _ => self.below(len),
        }
    }

    fn once(&mut self, data: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        if data.is_empty() {
            *data = (0..self.below(200)).map(|_| self.next() as u8).collect();
            return;
        }
        let at = self.place(data.len());
        match self.below(8) {
            0 => data[at] ^= 1 << self.below(8),
            1 => data[at] = self.next() as u8,
            2 => data.truncate(at),
            // Numbers that make lengths, counts and addresses overflow.
            3 | 4 => {
                let odd = [0, 1, 2, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX];
                let value = odd[self.below(odd.len())].wrapping_sub(self.below(2) as u64);
                let width = [2, 4, 8][self.below(3)].min(data.len() - at);
                let bytes = if self.below(2) == 0 { value.to_le_bytes() } else { value.to_be_bytes() };
                let bytes = if bytes[0] == 0 { &bytes[8 - width..] } else { &bytes[..width] };
                data[at..at + width].copy_from_slice(bytes);
            }
            5 => {
                let other = &corpus[self.below(corpus.len())];
                if !other.is_empty() {
                    let from = self.place(other.len());
                    data.truncate(at);
                    data.extend_from_slice(&other[from..]);
                }
            }
            6 => {
                let end = (at + 1 + self.below(64)).min(data.len());
                data.drain(at..end);
            }
            _ => {
                let end = (at + 1 + self.below(64)).min(data.len());
                let again = data[at..end].to_vec();
                let to = self.below(data.len());
                data.splice(to..to, again);
            }
        }
    }
}
