//! What operations share with the rest of their process: threads and memory.

/// Does `work`, which is made of many operations of this crate, in one of their threads. From a thread outside, each of the
/// hundreds of parallel loops of a forward pass would wake those threads and put the caller to sleep; from inside they
/// cost a fraction of that. `work` must not wait for anything but them.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// How many threads the operations of this crate use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Keeps the memory that tensors give back for those that come, instead of returning it to the system, which would clear it
/// anew each time: a training step's tensors took a quarter longer for that. To be called before threads are started, by a
/// program that works at one thing and ends: what it once needed stays its own. Only glibc is told; says whether it agreed.
pub fn keep_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    return [
        // No allocation is a mapping of its own, which would end with it.
        (libc::M_MMAP_MAX, 0),
        // Nothing at the end of the heap is returned.
        (libc::M_TRIM_THRESHOLD, -1),
        // Heaps of single threads are small, and what does not fit them would be a mapping again.
        (libc::M_ARENA_MAX, 1),
    ]
    .into_iter()
    .all(|(parameter, value)| {
        // SAFETY: `mallopt` takes any two numbers and changes settings of the allocator alone; what it does not know it
        // refuses, and then memory goes back as before.
        #[allow(unsafe_code)]
        let taken = unsafe { libc::mallopt(parameter, value) };
        taken == 1
    });
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn the_allocator_takes_it() {
        assert!(super::keep_memory());
    }
}
