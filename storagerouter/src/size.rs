//! Sizes as people write and read them. `10G` and `10GiB` are the same: powers of 1024.

#[cfg(test)]
mod tests;

const UNITS: [(&str, u32); 6] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)];

/// Bytes of a text: `4096`, `512MiB`, `1.5TiB`, `10G` (which is 10 GiB), `64KB` is refused.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = |why: &str| {
        format!("'{text}' is not a size: {why} (examples: 4096, 512MiB, 10GiB, 10G which means 10GiB, 1TiB)")
    };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    if number.is_empty() {
        return Err(bad("it must begin with a number"));
    }
    let shift = shift_of(unit.trim()).map_err(|why| bad(&why))?;
    let too_large = || bad("it is too large");
    match number.split_once('.') {
        None => {
            let whole: u64 = number.parse().map_err(|_| too_large())?;
            whole.checked_mul(1 << shift).ok_or_else(too_large)
        }
        Some((whole, fraction)) => {
            if shift == 0 {
                return Err(bad("a number of bytes has no fraction"));
            }
            // Up to 9 digits: exact in 128 bits for every unit.
            if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
                return Err(bad("its number can't be read"));
            }
            let whole: u64 = whole.parse().map_err(|_| too_large())?;
            let part: u64 = fraction.parse().map_err(|_| bad("its number can't be read"))?;
            let scale = 10u128.pow(fraction.len() as u32);
            let numerator = (u128::from(whole) * scale + u128::from(part)) << shift;
            if !numerator.is_multiple_of(scale) {
                return Err(bad("it is not a whole number of bytes"));
            }
            u64::try_from(numerator / scale).map_err(|_| too_large())
        }
    }
}

fn shift_of(unit: &str) -> Result<u32, String> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Ok(0);
    }
    for (letter, shift) in UNITS {
        if unit.eq_ignore_ascii_case(letter) || unit.eq_ignore_ascii_case(&format!("{letter}iB")) {
            return Ok(shift);
        }
        if unit.eq_ignore_ascii_case(&format!("{letter}B")) {
            return Err(format!("{unit} may mean powers of 1000 or of 1024; write {letter}iB"));
        }
    }
    Err(format!("there is no unit '{unit}'"))
}

/// Bytes for people: `10 GiB`, `1.5 TiB`, `512 B`; at most one decimal.
pub fn human(bytes: u64) -> String {
    let mut best = None;
    for (letter, shift) in UNITS {
        if bytes >= 1 << shift {
            best = Some((letter, shift));
        }
    }
    let Some((letter, shift)) = best else {
        return format!("{bytes} B");
    };
    let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
    if tenths % 10 == 0 {
        format!("{} {letter}iB", tenths / 10)
    } else {
        format!("{}.{} {letter}iB", tenths / 10, tenths % 10)
    }
}
