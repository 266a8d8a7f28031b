//! Bytes that tables hold on the heap, by their own capacities: what is measured beside a plan.

use std::collections::HashMap;

/// Bytes of a vector's allocation.
pub(crate) fn of_vec<T>(values: &Vec<T>) -> u64 {
    (values.capacity() * size_of::<T>()) as u64
}

/// Bytes of a map's table: a control byte beside each entry. What keys and values point to is not
/// in it.
pub(crate) fn of_map<K, V, S>(map: &HashMap<K, V, S>) -> u64 {
    table_bytes(map.capacity(), size_of::<(K, V)>())
}

/// Bytes of a hash table with room for `entries` of `entry_bytes`: at most seven of eight buckets
/// are taken, and their number is a power of two.
pub(crate) const fn table_bytes(entries: usize, entry_bytes: usize) -> u64 {
    if entries == 0 {
        return 0;
    }
    let buckets = (entries * 8).div_ceil(7).next_power_of_two();
    (buckets * (entry_bytes + 1)) as u64
}
