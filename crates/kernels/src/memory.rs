//! Memory between operations.

/// Keeps the memory that tensors give back for those that come, instead of returning it to the system, which would clear it
/// anew each time: a training step's tensors took a quarter longer for that. To be called before threads are started, by a
/// program that works at one thing and ends: what it once needed stays its own. Only glibc is told; elsewhere nothing happens.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        // No allocation is a mapping of its own, which would end with it.
        (libc::M_MMAP_MAX, 0),
        // Nothing at the end of the heap is returned.
        (libc::M_TRIM_THRESHOLD, -1),
        // Heaps of single threads are small, and what does not fit them would be a mapping again.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: `mallopt` takes any two numbers and changes settings of the allocator alone; what it does not know it
        // refuses, and then memory goes back as before.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(test)]
mod tests {
    /// What [`super::keep_memory`] does to this process: resident memory stays after a large vector has gone.
    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn memory_stays_after_a_vector_has_gone() {
        let resident = || -> usize {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        super::keep_memory();
        let before = resident();
        drop(std::hint::black_box(vec![1u8; 200 << 20]));
        assert!(
            resident() > before + (150 << 10),
            "kilobytes: {before}, then {}",
            resident()
        );
    }
}
