//! Finds zeroes in what was read.

use bytes::Bytes;

/// Zeroes are looked for in pieces of this size: less would make many small requests of one.
const GRAIN: usize = 16 << 10;

/// What a range holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Run {
    /// So many zeroes.
    Zero(u64),
    /// Something else.
    Data(Bytes),
}

/// Whether all of it is zero.
fn is_zero(bytes: &[u8]) -> bool {
    // A comparison with itself, one byte on: as fast as memory is.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

/// Cuts `data`, which lies at `offset`, into zeroes and the rest.
pub fn cut(offset: u64, data: &Bytes) -> Vec<(u64, Run)> {
    let mut runs = Vec::new();
    let mut begin = 0;
    while begin < data.len() {
        let grain = |from: usize| is_zero(&data[from..data.len().min(from + GRAIN)]);
        let zero = grain(begin);
        let mut end = data.len().min(begin + GRAIN);
        while end < data.len() && grain(end) == zero {
            end = data.len().min(end + GRAIN);
        }
        let run = if zero { Run::Zero((end - begin) as u64) } else { Run::Data(data.slice(begin..end)) };
        runs.push((offset + begin as u64, run));
        begin = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_found_and_nothing_else_is_taken_for_them() {
        let mut bytes = vec![0u8; 5 * GRAIN + 100];
        assert_eq!(cut(7, &bytes.clone().into()), [(7, Run::Zero(bytes.len() as u64))]);
        bytes[2 * GRAIN - 1] = 1;
        bytes[5 * GRAIN + 99] = 2;
        let data = Bytes::from(bytes);
        let grain = GRAIN as u64;
        let wanted = [
            (0, Run::Zero(grain)),
            (grain, Run::Data(data.slice(GRAIN..2 * GRAIN))),
            (2 * grain, Run::Zero(3 * grain)),
            (5 * grain, Run::Data(data.slice(5 * GRAIN..))),
        ];
        assert_eq!(cut(0, &data), wanted);
        assert!(cut(0, &Bytes::new()).is_empty());
        assert!(!is_zero(&[0, 0, 1]) && !is_zero(&[1, 1, 1]) && is_zero(&[0]) && is_zero(&[]));
    }
}
