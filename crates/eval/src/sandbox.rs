//! Python code that a model wrote, run apart from this machine.
//!
//! The sandbox is bubblewrap: no network, no files but the system's programs (read-only) and a temporary folder of its
//! own in memory, a process space of its own, limits on processor time, memory, processes and file size by `prlimit`,
//! and seconds to live. Where this program runs as root, the sandbox runs as nobody, since the kernel's limit on
//! processes does not bind root. A recipe may name another wrapper, such as a container.
//!
//! **Nothing runs unprotected.** Opening a sandbox tries it: if a program in it can read a file of this machine or reach
//! a socket of it, or if more processes start than are allowed, opening fails. What is not defended against: a program
//! that guesses how it is tested; such a program can only lie about itself.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::recipe::Limits;

/// The user and group that own nothing.
const NOBODY: &str = "65534";
/// How much of each output is kept.
const OUTPUT: u64 = 1 << 20;
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A sandbox that has been tried.
#[derive(Debug, Clone)]
pub struct Sandbox {
    command: Vec<String>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; `None` where it was killed or ran out of time.
    pub code: Option<i32>,
    /// Whether its time ran out.
    pub timed_out: bool,
    /// The beginning of its standard output.
    pub stdout: String,
    /// The beginning of its standard error.
    pub stderr: String,
}

impl Sandbox {
    /// Finds bubblewrap, or takes the recipe's wrapper, and tries that it holds.
    ///
    /// # Errors
    /// No sandbox, or one that leaks: each names what is missing and what to install.
    pub fn open(limits: &Limits) -> Result<Self> {
        let command = if limits.wrapper.is_empty() {
            bubblewrap(limits)?
        } else {
            limits.wrapper.clone()
        };
        let sandbox = Self { command };
        sandbox.try_out(limits)?;
        Ok(sandbox)
    }

    /// Runs a Python program, at most `wall` long.
    ///
    /// # Errors
    /// Where the sandbox itself cannot be started; whatever the program does is an [`Outcome`].
    pub fn run(&self, program: &str, wall: Duration) -> Result<Outcome> {
        let failed = |error: std::io::Error| broken(format!("{}: {error}", self.command[0]));
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that ends before it is read breaks the pipe; that is its own affair.
                if let Some(mut stdin) = stdin {
                    let _ = stdin.write_all(program.as_bytes());
                }
            });
            let stdout = scope.spawn(move || beginning(stdout));
            let stderr = scope.spawn(move || beginning(stderr));
            let start = Instant::now();
            let mut timed_out = false;
            let status = loop {
                if let Some(status) = child.try_wait().map_err(failed)? {
                    break status;
                }
                if start.elapsed() >= wall {
                    timed_out = true;
                    child.kill().map_err(failed)?;
                    break child.wait().map_err(failed)?;
                }
                std::thread::sleep(LOOK);
            };
            Ok(Outcome {
                code: status.code().filter(|_| !timed_out),
                timed_out,
                stdout: stdout.join().unwrap_or_default(),
                stderr: stderr.join().unwrap_or_default(),
            })
        })
    }

    /// Runs a program that tries to get out.
    fn try_out(&self, limits: &Limits) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| broken(error.to_string()))?;
        let port = listener
            .local_addr()
            .map_err(|error| broken(error.to_string()))?
            .port();
        let secret = std::env::current_exe().map_err(|error| broken(error.to_string()))?;
        let program = PROBE
            .replace("PORT", &port.to_string())
            .replace("PATH", &format!("{:?}", secret.display().to_string()))
            .replace("PROCESSES", &limits.processes.to_string());
        let outcome = self.run(&program, Duration::from_mins(1))?;
        if outcome.stdout.trim() == "held" && outcome.code == Some(0) {
            return Ok(());
        }
        let said = format!("{} {}", outcome.stdout.trim(), outcome.stderr.trim());
        Err(broken(format!(
            "`{}` does not protect this machine: {}",
            self.command[0],
            said.chars().take(300).collect::<String>().trim()
        )))
    }
}

/// Prints `held` when no way out is found, and else which one was.
const PROBE: &str = r#"
import os, socket, sys
leaks = []
try:
    open(PATH, "rb").close()
    leaks.append("it reads this machine's files;")
except OSError:
    pass
try:
    socket.create_connection(("127.0.0.1", PORT), 2).close()
    leaks.append("it reaches this machine's network;")
except OSError:
    pass
children = []
try:
    for _ in range(PROCESSES + 2):
        child = os.fork()
        if child == 0:
            import time
            time.sleep(30)
            os._exit(0)
        children.append(child)
    leaks.append("it starts more processes than allowed;")
except OSError:
    pass
for child in children:
    os.kill(child, 9)
print(" ".join(leaks) or "held")
"#;

fn broken(what: String) -> Error {
    Error::Sandbox {
        what,
        hint: "install bubblewrap (apt-get install bubblewrap; kernels may need unprivileged user namespaces switched on), \
               or name a container as sandbox.wrapper; code that a model wrote is not run without one"
            .into(),
    }
}

fn bubblewrap(limits: &Limits) -> Result<Vec<String>> {
    let missing = |name: &str| broken(format!("expected the program `{name}`, found none"));
    let there = |name: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
    };
    let mut needed = vec!["bwrap", "prlimit"];
    if is_root() {
        needed.push("setpriv");
    }
    if let Some(name) = needed.into_iter().find(|name| !there(name)) {
        return Err(missing(name));
    }
    let mut command: Vec<String> = Vec::new();
    if is_root() {
        let nobody = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        command.extend([
            "setpriv".into(),
            nobody[0].clone(),
            nobody[1].clone(),
            "--clear-groups".into(),
        ]);
    }
    let megabytes = |count: u64| (count << 20).to_string();
    let size = megabytes(limits.disk_mb);
    let fixed = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--setenv",
        "PATH",
        "/usr/local/bin:/usr/bin:/bin",
        "--setenv",
        "HOME",
        "/tmp",
        "--setenv",
        "LANG",
        "C.UTF-8",
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/sbin",
        "/sbin",
        "--symlink",
        "usr/lib",
        "/lib",
        "--symlink",
        "usr/lib64",
        "/lib64",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        &size,
        "--tmpfs",
        "/tmp",
        "--chdir",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--uid",
        NOBODY,
        "--gid",
        NOBODY,
        "--hostname",
        "sandbox",
    ];
    command.extend(fixed.map(String::from));
    command.extend([
        "prlimit".into(),
        format!("--as={}", megabytes(limits.memory_mb)),
        format!("--nproc={}", limits.processes),
        format!("--fsize={size}"),
        format!("--cpu={}", limits.cpu_s),
        "--nofile=256".into(),
        "--core=0".into(),
    ]);
    command.extend(["python3", "-I", "-"].map(String::from));
    Ok(command)
}

/// Whether this program runs as root, by who owns its entry in the process table.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The beginning of a stream, which is read to its end so that its writer does not wait.
fn beginning(stream: Option<impl Read>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let _ = stream.by_ref().take(OUTPUT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The sandbox, or a line that says why the test is left out.
    pub(crate) fn sandbox(limits: &Limits) -> Option<Sandbox> {
        match Sandbox::open(limits) {
            Ok(sandbox) => Some(sandbox),
            Err(error) => {
                eprintln!("left out: {error}");
                None
            }
        }
    }

    fn run(program: &str, wall_s: u64) -> Option<Outcome> {
        let sandbox = sandbox(&Limits::default())?;
        Some(sandbox.run(program, Duration::from_secs(wall_s)).unwrap())
    }

    #[test]
    fn a_program_prints_and_ends() {
        let Some(outcome) = run(
            "import os\nprint(os.getcwd(), os.getuid())\nopen('x', 'w').write('y')\n",
            30,
        ) else {
            return;
        };
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(0), "/tmp 65534\n"),
            "{outcome:?}"
        );
    }

    #[test]
    fn an_endless_loop_runs_out_of_time() {
        let Some(outcome) = run("import time\nwhile True: time.sleep(0.01)\n", 2) else {
            return;
        };
        assert!(outcome.timed_out && outcome.code.is_none(), "{outcome:?}");
    }

    #[test]
    fn a_fork_bomb_hits_the_limit_and_leaves_nothing() {
        let bomb = "import os\nn = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            \
                    import time; time.sleep(600); os._exit(0)\n        n += 1\nexcept OSError:\n    print('forks', n)\n";
        let Some(outcome) = run(bomb, 30) else { return };
        let forks: usize = outcome
            .stdout
            .trim()
            .strip_prefix("forks ")
            .unwrap()
            .parse()
            .unwrap();
        assert!(forks < 20, "{outcome:?}");
        assert!(!outcome.timed_out, "its children end with it");
    }

    #[test]
    fn a_memory_hog_is_stopped() {
        let hog = "x = []\ntry:\n    while True: x.append(bytearray(1 << 26))\nexcept MemoryError:\n    print(len(x) < 40)\n";
        let limits = Limits {
            memory_mb: 512,
            ..Limits::default()
        };
        let Some(sandbox) = sandbox(&limits) else { return };
        let outcome = sandbox.run(hog, Duration::from_mins(1)).unwrap();
        assert_eq!(outcome.stdout, "True\n", "{outcome:?}");
    }

    #[test]
    fn files_outside_are_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let program = format!(
            "for path, mode in [({:?}, 'r'), ('/etc/passwd', 'r'), ('/usr/bin/x', 'w'), ('/x', 'w')]:\n    try:\n        \
             open(path, mode)\n        print('opened', path)\n    except OSError as error:\n        pass\nprint('end')\n",
            secret.display().to_string()
        );
        let Some(outcome) = run(&program, 30) else { return };
        // The root of the sandbox is in memory and may be written; it is gone with it.
        assert_eq!(outcome.stdout.replace("opened /x\n", ""), "end\n", "{outcome:?}");
    }

    #[test]
    fn a_full_disk_and_a_socket_are_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let program = format!(
            "import socket\ntry:\n    socket.create_connection(('127.0.0.1', {}), 2)\n    print('reached')\nexcept OSError:\n    \
             print('no network')\ntry:\n    for i in range(9):\n        open(str(i), 'wb').write(bytes(1 << 24))\n    \
             print('wrote')\nexcept OSError:\n    print('full')\n",
            listener.local_addr().unwrap().port()
        );
        let Some(outcome) = run(&program, 30) else { return };
        assert_eq!(outcome.stdout, "no network\nfull\n", "{outcome:?}");
    }

    #[test]
    fn much_output_is_cut_and_does_not_stall() {
        let Some(outcome) = run("print('x' * (1 << 23))\n", 30) else {
            return;
        };
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(0), 1 << 20));
    }

    #[test]
    fn a_wrapper_that_protects_nothing_is_refused() {
        let limits = Limits {
            wrapper: ["python3", "-I", "-"].map(String::from).to_vec(),
            ..Limits::default()
        };
        let error = Sandbox::open(&limits).unwrap_err();
        assert!(error.to_string().contains("does not protect"), "{error}");
        let limits = Limits {
            wrapper: vec!["no-such-wrapper".into()],
            ..limits
        };
        let error = Sandbox::open(&limits).unwrap_err();
        assert!(error.hint().unwrap().contains("bubblewrap"), "{error}");
    }
}
