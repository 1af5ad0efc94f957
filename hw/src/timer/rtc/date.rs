//! Seconds since 1970 and calendar fields (proleptic Gregorian calendar, UTC).

use serde::{Deserialize, Serialize};

/// A date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Date {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// Days from 1970-01-01 to the first of March of `year` after shifting the year to start in March; see [`days`].
const DAYS_TO_EPOCH: i64 = 719_468;

/// Days since 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that start in March end with the leap day; 400 of them have 146,097 days.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, y) = (y.div_euclid(400), y.rem_euclid(400));
    era * 146_097 + y * 365 + y / 4 - y / 100 + (153 * m + 2) / 5 + day - 1 - DAYS_TO_EPOCH
}

impl Date {
    /// The date at `seconds` since 1970; clamped to the years 0 to 9999.
    pub fn at(seconds: i64) -> Self {
        let seconds = seconds.clamp(days(0, 1, 1) * 86_400, days(10_000, 1, 1) * 86_400 - 1);
        let (day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = day + DAYS_TO_EPOCH;
        let (era, d) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let y = (d - d / 1460 + d / 36_524 - d / 146_096) / 365;
        let day_of_year = d - (365 * y + y / 4 - y / 100);
        let m = (5 * day_of_year + 2) / 153;
        let month = if m < 10 { m + 3 } else { m - 9 };
        Self {
            year: (era * 400 + y + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * m + 2) / 5 + 1) as u8,
            weekday: ((day + 4).rem_euclid(7) + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Seconds since 1970. Fields out of range count over, as 32 January is 1 February.
    pub fn seconds(&self) -> i64 {
        // A guest may have written any byte.
        let month = i64::from(self.month.clamp(1, 12));
        days(self.year.into(), month, self.day.into()) * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let d = Date::at(951_782_399);
        assert_eq!((d.year, d.month, d.day, d.weekday), (2000, 2, 28, 2));
        assert_eq!((d.hour, d.minute, d.second), (23, 59, 59));
        let d = Date::at(951_782_400);
        assert_eq!((d.year, d.month, d.day, d.weekday), (2000, 2, 29, 3));
        let d = Date::at(0);
        assert_eq!((d.year, d.month, d.day, d.weekday), (1970, 1, 1, 5));
        let d = Date::at(-1);
        assert_eq!((d.year, d.month, d.day, d.second), (1969, 12, 31, 59));
    }

    #[test]
    fn converts_both_ways() {
        for s in (-60_000_000_000i64..250_000_000_000).step_by(86_399 * 1013) {
            assert_eq!(Date::at(s).seconds(), s.clamp(-62_167_219_200, 253_402_300_799));
        }
        assert_eq!(Date::at(i64::MIN).year, 0);
        assert_eq!(Date::at(i64::MAX).year, 9999);
    }
}
