//! Bytes that tables hold on the heap, by their own capacities: what is measured beside a plan.

use std::collections::HashMap;

/// Bytes of a vector's allocation.
pub(crate) fn of_vec<T>(values: &Vec<T>) -> u64 {
    (values.capacity() * size_of::<T>()) as u64
}

/// Bytes of a map's table: a power of two of buckets, of which seven of eight can be taken, and a
/// control byte beside each. What keys and values point to is not in it.
pub(crate) fn of_map<K, V, S>(map: &HashMap<K, V, S>) -> u64 {
    if map.capacity() == 0 {
        return 0;
    }
    let buckets = (map.capacity() * 8).div_ceil(7).next_power_of_two();
    (buckets * (size_of::<(K, V)>() + 1)) as u64
}
