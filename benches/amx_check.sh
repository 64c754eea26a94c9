#!/bin/sh
# Runs the kernels' tests on a processor with AMX that Bochs emulates, for machines without: it shows that the tiles multiply
# rightly, and nothing about their speed.
#
#   benches/amx_check.sh ROOT KERNEL
#
# ROOT    a folder into which these Debian 13 packages and what they depend on are unpacked (dpkg-deb -x): bochs 3.0 or later,
#         bochs-term, bochsbios, vgabios, busybox-static, isolinux, syslinux-common, xorriso, ncurses-base
# KERNEL  a Linux of 6.15 or later for x86-64 with a serial console and an initramfs (vmlinuz)
#
# To be run as root, with cpio and script at hand. Takes about two minutes.
#
# Bochs 3.0 has the tiles but not the fault by which Linux learns that a thread uses them (XFD). The kernel is told that it has,
# so that it gives permission; it then loses the tiles of a thread that it interrupts for another one. So the tests have the
# second processor for themselves, and are begun again where one was interrupted after all. Two tests start processes of their
# own, which interrupt each other: they are left out. Bochs' vdpbf16ps adds up wrongly where a processor does not: tests under
# SAFERL_KERNELS=vectors mean nothing there.
set -eu
root=$(realpath "$1")
kernel=$(realpath "$2")
cd "$(dirname "$0")/.."

tests=$(cargo test --release -p kernels --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
work=$(mktemp -d)
# What is mounted goes first: nobody who deletes ROOT should meet this machine's devices there.
trap 'umount "$root/dev" 2>/dev/null; rm -rf "$work" "$root/tmp/amx"' EXIT

# What the emulated machine runs.
mkdir -p "$work/init/bin" "$work/init/proc" "$work/init/dev" "$work/init/tmp"
cp "$root/usr/bin/busybox" "$(command -v taskset)" "$work/init/bin"
cp "$tests" "$work/init/bin/tests"
strip "$work/init/bin/tests"
for library in $(ldd "$tests" "$(command -v taskset)" | grep -o '/lib[^ ]*' | sort -u); do
    mkdir -p "$work/init/$(dirname "$library")"
    cp -L "$library" "$work/init/$library"
done
cat > "$work/init/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
export RAYON_NUM_THREADS=1 TMPDIR=/tmp
for attempt in 1 2 3 4 5 6 7 8; do
    /bin/taskset 2 /bin/tests --test-threads=1 --nocapture --skip bits_do_not_depend --skip everything_holds 2>&1 && break
done
echo "== tests ended with $?"
/bin/busybox poweroff -f
INIT
chmod +x "$work/init/init"

# A disc to start it from.
mkdir -p "$root/tmp/amx/disc" "$root/proc" "$root/dev" "$root/usr/share/terminfo"
(cd "$work/init" && find . | cpio -o -H newc --quiet | gzip -1) > "$root/tmp/amx/disc/initrd.gz"
cp "$kernel" "$root/tmp/amx/disc/vmlinuz"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$root/tmp/amx/disc"
cat > "$root/tmp/amx/disc/isolinux.cfg" <<'DISC'
DEFAULT tests
PROMPT 0
LABEL tests
 KERNEL vmlinuz
 APPEND initrd=initrd.gz console=ttyS0,115200 mitigations=off nokaslr tsc=unstable random.trust_cpu=on idle=halt mce=off no5lvl setcpuid=324 clearcpuid=user_shstk,waitpkg isolcpus=1 nohz_full=1 rcu_nocbs=1 panic=-1
DISC
chroot "$root" xorriso -as mkisofs -quiet -o /tmp/amx/disc.iso -b isolinux.bin -c boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table /tmp/amx/disc
cat > "$root/tmp/amx/bochsrc" <<'BOCHS'
display_library: term
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=sapphire_rapids, count=2, ips=200000000, exclude_features="waitpkg"
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=/tmp/amx/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/tmp/amx/serial
clock: sync=none, time0=utc
log: /tmp/amx/log
panic: action=fatal
mouse: enabled=0
BOCHS

# It draws the emulated screen on a terminal, which nobody needs.
mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
export TERM=linux TERMINFO=/usr/share/terminfo
timeout 1200 script -qfc "chroot '$root' /usr/bin/bochs-bin -q -f /tmp/amx/bochsrc" /dev/null < /dev/null > /dev/null 2>&1 || true

tr -d '\r' < "$root/tmp/amx/serial" | sed -n '/^running /,$p'
grep -q 'products by tiles: tested' "$root/tmp/amx/serial"
grep -q '^== tests ended with 0' "$root/tmp/amx/serial"
