//! Erasure coding: any k of k + m fragments give each other one back.
//!
//! The code is that of `reed-solomon-erasure`: systematic, Vandermonde over GF(2^8). It also does the arithmetic (by SIMD). What is
//! here is which fragment times what gives which: one way through for parity, lost data, lost parity and slices of any of
//! them, from bytes that lie anywhere and are not changed. Columns are worked on in pieces that stay in the first cache, and a piece
//! of each fragment at the same place is all that is needed, so a slice costs a slice.

use common::{Error, Result};
use parking_lot::RwLock;
use reed_solomon_erasure::galois_8::{self, Field};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Columns at a time: the outputs stay in the first cache while one input after the other goes by.
const COLUMNS: usize = 8 << 10;

/// Codes by their k and m.
type Made = HashMap<(usize, usize), Arc<Code>>;

/// The code of k data and m parity fragments.
#[derive(Debug)]
pub struct Code {
    k: usize,
    /// What each parity fragment is, as factors of the data fragments.
    parity: Vec<Vec<u8>>,
}

impl Code {
    /// The code of `k` data and `m` parity fragments; made once per process.
    ///
    /// # Errors
    /// `Invalid` when there is no such code.
    pub fn of(k: usize, m: usize) -> Result<Arc<Code>> {
        static MADE: OnceLock<RwLock<Made>> = OnceLock::new();
        if k == 0 || k + m > super::super::preset::MAX_FRAGMENTS {
            return Err(Error::invalid(format!("there is no code of {k} data and {m} parity fragments")));
        }
        let made = MADE.get_or_init(RwLock::default);
        if let Some(code) = made.read().get(&(k, m)) {
            return Ok(code.clone());
        }
        let code = Arc::new(Self::make(k, m)?);
        Ok(made.write().entry((k, m)).or_insert(code).clone())
    }

    fn make(k: usize, m: usize) -> Result<Code> {
        let mut parity = vec![vec![0; k]; m];
        if m > 0 {
            let wrong = |e| Error::internal(format!("erasure code ({k}, {m}): {e:?}"));
            let code = reed_solomon_erasure::ReedSolomon::<Field>::new(k, m).map_err(wrong)?;
            // What becomes of one 1 among zeroes is the factor.
            for one in 0..k {
                let data: Vec<[u8; 1]> = (0..k).map(|i| [u8::from(i == one)]).collect();
                let mut sums = vec![[0u8; 1]; m];
                code.encode_sep(&data, &mut sums).map_err(wrong)?;
                for (row, sum) in parity.iter_mut().zip(sums) {
                    row[one] = sum[0];
                }
            }
        }
        Ok(Code { k, parity })
    }

    /// Data fragments.
    pub fn data(&self) -> usize {
        self.k
    }

    /// Data and parity fragments.
    pub fn fragments(&self) -> usize {
        self.k + self.parity.len()
    }

    fn row(&self, fragment: usize) -> Vec<u8> {
        match fragment.checked_sub(self.k) {
            Some(parity) => self.parity[parity].clone(),
            None => (0..self.k).map(|i| u8::from(i == fragment)).collect(),
        }
    }

    /// How each of `want` comes from the k fragments `have`: a row of factors for each.
    ///
    /// # Errors
    /// `Internal` when `have` is not k different fragments.
    pub fn solve(&self, have: &[usize], want: &[usize]) -> Result<Recipe> {
        let distinct = have.iter().enumerate().all(|(n, f)| !have[..n].contains(f));
        let known = have.iter().chain(want).all(|f| *f < self.fragments());
        if have.len() != self.k || !distinct || !known {
            return Err(Error::internal(format!(
                "fragments {want:?} of {} can't be told from {have:?}",
                self.fragments()
            )));
        }
        let inverse = invert(have.iter().map(|f| self.row(*f)).collect())
            .ok_or_else(|| Error::internal(format!("fragments {have:?} do not give the others")))?;
        let rows = want.iter().map(|f| {
            if let Some(at) = have.iter().position(|h| h == f) {
                return (0..self.k).map(|i| u8::from(i == at)).collect();
            }
            let row = self.row(*f);
            let factor =
                |at: usize| (0..self.k).fold(0, |sum, i| sum ^ galois_8::mul(row[i], inverse[i][at]));
            (0..self.k).map(factor).collect()
        });
        Ok(Recipe { rows: rows.collect() })
    }

    /// How the parity comes from the data.
    pub fn encoding(&self) -> Recipe {
        Recipe { rows: self.parity.clone() }
    }
}

/// The inverse by Gauss and Jordan, or `None` when there is none.
fn invert(mut a: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let n = a.len();
    let mut b: Vec<Vec<u8>> = (0..n).map(|r| (0..n).map(|c| u8::from(r == c)).collect()).collect();
    for column in 0..n {
        let pivot = (column..n).find(|r| a[*r][column] != 0)?;
        a.swap(column, pivot);
        b.swap(column, pivot);
        let divisor = a[column][column];
        for v in a[column].iter_mut().chain(b[column].iter_mut()) {
            *v = galois_8::div(*v, divisor);
        }
        let (pivot_a, pivot_b) = (a[column].clone(), b[column].clone());
        for row in (0..n).filter(|r| *r != column) {
            let factor = a[row][column];
            for (v, p) in a[row].iter_mut().zip(&pivot_a) {
                *v ^= galois_8::mul(factor, *p);
            }
            for (v, p) in b[row].iter_mut().zip(&pivot_b) {
                *v ^= galois_8::mul(factor, *p);
            }
        }
    }
    Some(b)
}

/// Factors: each output is the sum of the inputs times its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    rows: Vec<Vec<u8>>,
}

impl Recipe {
    /// Outputs that it makes.
    pub fn outputs(&self) -> usize {
        self.rows.len()
    }

    /// Computes the outputs from `inputs`; all slices are of one length.
    pub fn apply(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let len = outputs.first().map_or(0, |o| o.len());
        for from in (0..len).step_by(COLUMNS) {
            let columns = from..len.min(from + COLUMNS);
            for (row, output) in self.rows.iter().zip(outputs.iter_mut()) {
                let output = &mut output[columns.clone()];
                // The first that counts overwrites what is there, so nothing need be zeroed.
                let mut first = true;
                for (factor, input) in row.iter().zip(inputs) {
                    let input = &input[columns.clone()];
                    match (*factor, first) {
                        (0, _) => continue,
                        (1, true) => output.copy_from_slice(input),
                        (factor, true) => galois_8::mul_slice(factor, input, output),
                        (factor, false) => galois_8::mul_slice_xor(factor, input, output),
                    }
                    first = false;
                }
                if first {
                    output.fill(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [(usize, usize); 7] = [(4, 2), (8, 3), (2, 2), (1, 2), (1, 0), (3, 1), (5, 4)];

    fn data(k: usize, len: usize) -> Vec<Vec<u8>> {
        let mut random = fastrand::Rng::with_seed((k * 1000 + len) as u64);
        (0..k).map(|_| (0..len).map(|_| random.u8(..)).collect()).collect()
    }

    fn encoded(k: usize, m: usize, len: usize) -> Vec<Vec<u8>> {
        let mut all = data(k, len);
        let mut parity = vec![vec![0xaau8; len]; m];
        let inputs: Vec<&[u8]> = all.iter().map(|d| &d[..]).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
        Code::of(k, m).unwrap().encoding().apply(&inputs, &mut outputs);
        all.extend(parity);
        all
    }

    /// Every choice of `n` out of `of`.
    fn choices(of: usize, n: usize) -> Vec<Vec<usize>> {
        (0u32..1 << of)
            .filter(|bits| bits.count_ones() as usize == n)
            .map(|bits| (0..of).filter(|i| bits >> i & 1 == 1).collect())
            .collect()
    }

    #[test]
    fn parity_is_what_the_crate_computes() {
        for (k, m) in CODES.into_iter().filter(|(_, m)| *m > 0) {
            for len in [1, 31, 64, COLUMNS, COLUMNS + 33] {
                let ours = encoded(k, m, len);
                let mut theirs = data(k, len);
                theirs.extend(vec![vec![0; len]; m]);
                reed_solomon_erasure::ReedSolomon::<Field>::new(k, m).unwrap().encode(&mut theirs).unwrap();
                assert!(ours == theirs, "({k}, {m}) of {len} bytes");
            }
        }
    }

    #[test]
    fn any_k_fragments_give_every_other_one_and_any_slice_of_it() {
        for (k, m) in CODES {
            let (code, len) = (Code::of(k, m).unwrap(), 1000);
            let all = encoded(k, m, len);
            for have in choices(k + m, k) {
                let want: Vec<usize> = (0..k + m).collect();
                let recipe = code.solve(&have, &want).unwrap();
                for range in [0..len, 0..1, 300..417] {
                    let inputs: Vec<&[u8]> = have.iter().map(|f| &all[*f][range.clone()]).collect();
                    let mut made = vec![vec![0x55u8; range.len()]; want.len()];
                    let mut outputs: Vec<&mut [u8]> = made.iter_mut().map(|m| &mut m[..]).collect();
                    recipe.apply(&inputs, &mut outputs);
                    let right = want.iter().all(|f| made[*f] == all[*f][range.clone()]);
                    assert!(right, "({k}, {m}) from {have:?}, {range:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_k_different_fragments_is_refused() {
        let code = Code::of(4, 2).unwrap();
        for have in [&[0, 1, 2][..], &[0, 1, 2, 2], &[0, 1, 2, 6], &[0, 1, 2, 3, 4]] {
            code.solve(have, &[5]).unwrap_err();
        }
        code.solve(&[0, 1, 2, 3], &[6]).unwrap_err();
        Code::of(0, 2).unwrap_err();
        Code::of(30, 3).unwrap_err();
    }

    /// The figure of docs/performance.md: GB/s of data on one core. `cargo test --release -p alba-proxy speed -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_encoding_and_decoding() {
        for (k, m) in [(4, 2), (8, 3)] {
            for len in [64 << 10, 1 << 20] {
                let code = Code::of(k, m).unwrap();
                let all = encoded(k, m, len);
                let lost: Vec<usize> = (0..m).collect();
                let have: Vec<usize> = (m..k + m).collect();
                let inputs: Vec<&[u8]> = all[..k].iter().map(|d| &d[..]).collect();
                let left: Vec<&[u8]> = have.iter().map(|f| &all[*f][..]).collect();
                let mut made = vec![vec![0u8; len]; m];
                let mut outputs: Vec<&mut [u8]> = made.iter_mut().map(|p| &mut p[..]).collect();
                let (encode, decode) = (code.encoding(), code.solve(&have, &lost).unwrap());
                let mut time = |recipe: &Recipe, inputs: &[&[u8]]| {
                    let rounds = (2usize << 30) / (k * len);
                    let mut rates: Vec<f64> = (0..7)
                        .map(|_| {
                            let before = cpu_seconds();
                            for _ in 0..rounds {
                                recipe.apply(std::hint::black_box(inputs), &mut outputs);
                            }
                            (rounds * k * len) as f64 / (cpu_seconds() - before) / 1e9
                        })
                        .collect();
                    rates.sort_by(f64::total_cmp);
                    (rates[3], rates[0], rates[6])
                };
                let (e, d) = (time(&encode, &inputs), time(&decode, &left));
                println!(
                    "({k},{m}) fragments of {} KiB: encode {:.1} ({:.1}..{:.1}) GB/s, decode {m} lost {:.1} ({:.1}..{:.1}) GB/s",
                    len >> 10,
                    e.0,
                    e.1,
                    e.2,
                    d.0,
                    d.1,
                    d.2
                );
            }
        }
    }

    /// What this thread has had of a CPU: the first number in the kernel's account of it.
    fn cpu_seconds() -> f64 {
        let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        account.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    }
}
