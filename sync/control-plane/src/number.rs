//! SQLite's integers are signed 64-bit. Sizes, versions and counters stay far below the
//! difference; what comes from outside is clamped, never wrapped.

/// For SQL.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// From SQL.
pub(crate) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
