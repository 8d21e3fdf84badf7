//! The oracle: which sectors a volume may hold now.
//!
//! Each 512-byte sector that the simulation writes says which volume, write and sector it belongs
//! to, so an image explains itself. The rules are the clauses of the contract (`docs/testing.md`): a
//! sector is a linearizable register; a cluster is never torn between two writes of all of it;
//! after a crash the image is a prefix of the log that holds what was promised.

/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// Sectors in a cluster.
pub const PER_CLUSTER: usize = 8;

const NEVER: u64 = u64::MAX;

/// A run of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Range {
    /// The sectors.
    pub fn sectors(self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }

    /// Whether all of this sector's cluster is in it.
    fn covers_cluster_of(self, sector: usize) -> bool {
        let cluster = sector / PER_CLUSTER * PER_CLUSTER;
        self.first <= cluster && cluster + PER_CLUSTER <= self.first + self.count
    }
}

/// What may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Nothing that was acknowledged.
    Everything,
    /// What was not acknowledged before this moment, nor with FUA.
    Flushed(u64),
    /// What was not acknowledged before this moment.
    Committed(u64),
}

/// One state that a sector had, has, or may have.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// The word that its bytes repeat; 0 for zeroes.
    word: u64,
    issued: u64,
    acked: u64,
    /// Acknowledged with FUA.
    fua: bool,
    /// It came with all of its cluster.
    whole: bool,
    /// Somebody saw a later one before this moment: reads issued after it do not return this one.
    gone: u64,
}

/// A change that was issued.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    range: Range,
    issued: u64,
}

/// What is known of one volume.
pub struct Model {
    volume: u64,
    clock: u64,
    sectors: Vec<Vec<Version>>,
    /// What the last read saw, and when it returned.
    seen: Vec<(u64, u64)>,
    /// Growths: size in sectors, issued, acknowledged.
    sizes: Vec<(usize, u64, u64)>,
}

impl Model {
    /// A volume of zeroes, of `size` sectors, that may grow to `most`.
    pub fn new(volume: u64, size: usize, most: usize) -> Self {
        let zero = Version { word: 0, issued: 0, acked: 0, fua: false, whole: false, gone: NEVER };
        let sectors = vec![vec![zero]; most];
        Self { volume, clock: 1, sectors, seen: vec![(0, NEVER); most], sizes: vec![(size, 0, 0)] }
    }

    /// This moment: later than everything before.
    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The size that was acknowledged, in sectors.
    pub fn size(&self) -> usize {
        self.sizes.iter().filter(|s| s.2 != NEVER).map(|s| s.0).max().unwrap_or(0)
    }

    /// The largest size that the volume may have, in sectors.
    pub fn most(&self) -> usize {
        self.sectors.len()
    }

    fn word(&self, issued: u64, sector: usize) -> u64 {
        (self.volume + 1) << 56 | issued << 16 | sector as u64
    }

    /// A write is about to be issued: its bytes.
    pub fn begin_write(&mut self, range: Range) -> (Ticket, Vec<u8>) {
        let issued = self.now();
        let mut data = Vec::with_capacity(range.count * SECTOR);
        for sector in range.sectors() {
            let word = self.word(issued, sector);
            for _ in 0..SECTOR / 8 {
                data.extend_from_slice(&word.to_le_bytes());
            }
            self.push(range, sector, issued, word);
        }
        (Ticket { range, issued }, data)
    }

    /// A discard or a write of zeroes is about to be issued.
    pub fn begin_zero(&mut self, range: Range) -> Ticket {
        let issued = self.now();
        range.sectors().for_each(|sector| self.push(range, sector, issued, 0));
        Ticket { range, issued }
    }

    fn push(&mut self, range: Range, sector: usize, issued: u64, word: u64) {
        let whole = range.covers_cluster_of(sector);
        self.sectors[sector].push(Version { word, issued, acked: NEVER, fua: false, whole, gone: NEVER });
    }

    /// The change was acknowledged.
    pub fn ack(&mut self, ticket: Ticket, fua: bool) {
        let now = self.now();
        for sector in ticket.range.sectors() {
            if let Some(v) = self.sectors[sector].iter_mut().rev().find(|v| v.issued == ticket.issued) {
                v.acked = now;
                v.fua = fua;
            }
        }
    }

    /// For each sector what it may show to something that happened between `issued` and now.
    pub fn may(&self, issued: u64) -> Vec<Vec<u64>> {
        let words = |versions: &Vec<Version>| {
            let barrier = versions.iter().filter(|v| v.acked < issued).map(|v| v.issued).max().unwrap_or(0);
            let may = |v: &&Version| v.acked >= barrier || v.issued >= barrier;
            versions.iter().filter(may).map(|v| v.word).collect()
        };
        self.sectors[..self.size()].iter().map(words).collect()
    }

    /// A growth is about to be issued; its number.
    pub fn begin_resize(&mut self, size: usize) -> usize {
        let issued = self.now();
        self.sizes.push((size, issued, NEVER));
        self.sizes.len() - 1
    }

    /// The growth was acknowledged.
    pub fn ack_resize(&mut self, number: usize) {
        let now = self.now();
        if let Some(size) = self.sizes.get_mut(number) {
            size.2 = now;
        }
    }

    /// Checks what a read that was issued at `issued` returned, and remembers it.
    pub fn check_read(&mut self, range: Range, issued: u64, data: &[u8]) -> Result<(), String> {
        let words = self.words(range, data)?;
        let barrier = |v: &Version| v.acked < issued;
        self.explain(range, &words, barrier, issued)?;
        let now = self.now();
        for (sector, word) in range.sectors().zip(words) {
            let (before, at) = self.seen[sector];
            if at < issued && before != word && before != 0 {
                for v in self.sectors[sector].iter_mut().filter(|v| v.word == before) {
                    v.gone = v.gone.min(now);
                }
            }
            self.seen[sector] = (word, now);
        }
        Ok(())
    }

    /// Checks that a run that was told to read as zeroes may do so.
    pub fn check_zero(&self, range: Range, issued: u64) -> Result<(), String> {
        let barrier = |v: &Version| v.acked < issued;
        self.explain(range, &vec![0; range.count], barrier, issued)
            .map_err(|e| format!("told to be zero: {e}"))
    }

    /// Checks the whole image after a crash, and takes it as the truth from now on.
    pub fn settle(&mut self, image: &[u8], promise: Promise) -> Result<(), String> {
        let size = image.len() / SECTOR;
        let (mut cutoff, fua) = match promise {
            Promise::Everything => (NEVER, false),
            Promise::Flushed(moment) => (moment, true),
            Promise::Committed(moment) => (moment, false),
        };
        let all = Range { first: 0, count: self.most() };
        let mut words = self.words(Range { first: 0, count: size }, image)?;
        words.resize(self.most(), 0);
        // No hole: whatever was acknowledged before something that is there was issued, is there.
        let promised = self.sectors.iter().flatten().filter(|v| fua && v.fua).map(|v| v.issued);
        let there = words.iter().map(|w| w >> 16 & 0xff_ffff_ffff);
        cutoff = promised.chain(there).fold(cutoff, u64::max);
        // What somebody saw may be undone with the tail, but not by the death of the process alone.
        let seen = if promise == Promise::Everything { NEVER } else { 0 };
        self.explain(all, &words, |v| v.acked < cutoff || fua && v.fua, seen)?;
        let least = self.sizes.iter().filter(|s| s.2 < cutoff).map(|s| s.0).max().unwrap_or(0);
        if size < least || !self.sizes.iter().any(|s| s.0 == size) {
            return Err(format!("the size is {size} sectors and should be at least {least}"));
        }
        self.rebase(words, size, matches!(promise, Promise::Committed(_)));
        Ok(())
    }

    /// What was found is what there is from now on. What came before it may come back with a
    /// greater loss (unless it is `all` that is left); what would have come after it may not.
    fn rebase(&mut self, words: Vec<u64>, size: usize, all: bool) {
        let now = self.now();
        for (sector, word) in words.into_iter().enumerate() {
            let versions = &mut self.sectors[sector];
            let found = versions.iter().filter(|v| v.word == word).map(|v| v.acked).max().unwrap_or(0);
            versions.retain_mut(|v| {
                v.acked = v.acked.min(now);
                v.gone = NEVER;
                !all && v.issued <= found
            });
            versions.push(Version { word, issued: now, acked: now, fua: false, whole: false, gone: NEVER });
            self.seen[sector] = (word, now);
        }
        self.sizes.retain(|s| !all && s.0 < size);
        self.sizes.push((size, now, now));
    }

    /// Forgets what no loss can bring back any more, since all before `committed` is on the backend.
    pub fn forget(&mut self, committed: u64) {
        for versions in &mut self.sectors {
            let barrier =
                versions.iter().filter(|v| v.acked < committed).map(|v| v.issued).max().unwrap_or(0);
            versions.retain(|v| v.acked >= barrier || v.issued >= barrier);
        }
    }

    /// The words of an image; an error names the first sector that is torn, foreign or misplaced.
    fn words(&self, range: Range, data: &[u8]) -> Result<Vec<u64>, String> {
        let mut words = Vec::with_capacity(range.count);
        for (sector, bytes) in range.sectors().zip(data.chunks_exact(SECTOR)) {
            let (first, rest) = bytes.split_at(8);
            let word = u64::from_le_bytes(first.try_into().unwrap_or_default());
            if rest.chunks_exact(8).any(|w| w != first) {
                return Err(format!("sector {sector} is torn"));
            }
            if word != 0 && (word >> 56 != self.volume + 1 || word & 0xffff != sector as u64) {
                return Err(format!("sector {sector} holds another's data: {word:#x}"));
            }
            words.push(word);
        }
        Ok(words)
    }

    /// Whether the words can be what the sectors hold, when no version that was issued before the
    /// newest one of which `required` holds counts any more.
    fn explain(
        &self,
        range: Range,
        words: &[u64],
        required: impl Fn(&Version) -> bool,
        issued: u64,
    ) -> Result<(), String> {
        let mut found: Vec<Option<Version>> = Vec::with_capacity(words.len());
        for (sector, &word) in range.sectors().zip(words) {
            let versions = &self.sectors[sector];
            let barrier = versions.iter().filter(|v| required(v)).map(|v| v.issued).max().unwrap_or(0);
            // What was acknowledged before the barrier was issued has been overwritten.
            let may = |v: &&Version| {
                v.word == word && (v.acked >= barrier || v.issued >= barrier) && v.gone >= issued
            };
            match versions.iter().find(may) {
                Some(v) => found.push(Some(*v).filter(|_| word != 0)),
                None => return Err(self.complain(sector, word, barrier)),
            }
        }
        self.explain_clusters(range, &found)
    }

    /// Two writes of a whole cluster are never mixed in it, and nothing older shows through.
    fn explain_clusters(&self, range: Range, found: &[Option<Version>]) -> Result<(), String> {
        let mut at = 0;
        while at < range.count {
            let cluster = (range.first + at) / PER_CLUSTER;
            let end = ((cluster + 1) * PER_CLUSTER - range.first).min(range.count);
            let here = &found[at..end];
            if let Some(whole) = here.iter().flatten().filter(|v| v.whole).max_by_key(|v| v.issued) {
                let torn = here
                    .iter()
                    .flatten()
                    .any(|v| v.issued != whole.issued && (v.whole || v.acked < whole.issued));
                if torn {
                    return Err(format!("cluster {cluster} is torn between two writes: {here:?}"));
                }
            }
            at = end;
        }
        Ok(())
    }

    fn complain(&self, sector: usize, word: u64, barrier: u64) -> String {
        let versions = &self.sectors[sector];
        let what =
            if versions.iter().any(|v| v.word == word) { "an old state" } else { "what it never held" };
        let may: Vec<_> = versions.iter().filter(|v| v.acked >= barrier).collect();
        format!("volume {}, sector {sector} shows {what} ({word:#x}), may show {may:?}", self.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: usize, count: usize) -> Range {
        Range { first, count }
    }

    fn image(model: &Model, writes: &[(Range, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; model.size() * SECTOR];
        for (range, data) in writes {
            image[range.first * SECTOR..(range.first + range.count) * SECTOR].copy_from_slice(data);
        }
        image
    }

    #[test]
    fn a_lost_an_old_and_a_torn_write_are_told_from_the_right_one() {
        let mut model = Model::new(0, 16, 16);
        let (first, old) = model.begin_write(range(0, 8));
        model.ack(first, false);
        let (second, new) = model.begin_write(range(0, 8));
        model.ack(second, false);
        let flushed = model.now();
        let right = image(&model, &[(range(0, 8), &new)]);
        let stale = image(&model, &[(range(0, 8), &old)]);
        assert!(model.settle(&stale, Promise::Everything).is_err());
        assert!(model.settle(&stale, Promise::Flushed(flushed)).is_err());
        let mut torn = right.clone();
        torn[..SECTOR].copy_from_slice(&stale[..SECTOR]);
        assert!(model.settle(&torn, Promise::Committed(0)).is_err());
        model.settle(&right, Promise::Everything).unwrap();
        assert!(model.settle(&stale, Promise::Everything).is_err(), "what was seen stays");
        // A greater loss may go further back, and then that is what stays.
        model.settle(&stale, Promise::Committed(0)).unwrap();
        assert!(model.settle(&right, Promise::Committed(0)).is_err(), "what was lost does not come back");
    }

    #[test]
    fn a_hole_in_the_log_is_seen() {
        let mut model = Model::new(0, 16, 16);
        let (first, _) = model.begin_write(range(0, 8));
        model.ack(first, false);
        let (second, new) = model.begin_write(range(8, 8));
        model.ack(second, false);
        let hole = image(&model, &[(range(8, 8), &new)]);
        assert!(model.settle(&hole, Promise::Committed(0)).is_err());
        let nothing = image(&model, &[]);
        model.settle(&nothing, Promise::Committed(0)).unwrap();
    }

    #[test]
    fn reads_do_not_go_back_in_time() {
        let mut model = Model::new(0, 8, 8);
        let (_, old) = model.begin_write(range(0, 8));
        let (_, new) = model.begin_write(range(0, 8));
        for (data, right) in [(&old, true), (&new, true), (&old, false)] {
            let issued = model.now();
            assert_eq!(model.check_read(range(0, 8), issued, data).is_ok(), right);
        }
    }
}
