//! Overlays that a container mounts, as image builders and nested engines do, with their layers on a volume.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Runtime, is_vmrt};

/// Shell functions of the scripts. They sleep, because the guest caches names for a second.
const FUNCTIONS: &str = r#"
set -e
layers() {
  mkdir -p $1/a/d $1/a/merged $1/b/merged $1/u $1/k $1/m
  for name in f meta owner times gone links map held; do echo $name >$1/a/$name; done
  ln $1/a/links $1/a/links2; ln -s f $1/a/symbolic; mkfifo $1/a/pipe; echo 1 >$1/a/d/one
  echo x >$1/a/merged/x; echo y >$1/b/merged/y; echo b >$1/b/below
}
join() { mount -t overlay overlay -o lowerdir=$1/a:$1/b,upperdir=$1/u,workdir=$1/k$2 $1/m; }
change() (
  cd $1/m; exec 9<held
  echo more >>f; echo more >>links; chmod 640 meta; touch -d @1000 times; echo more >>held
  ln f hard; rm f; echo new >new; ln new new2; mv new2 new3; rm new
  rm gone below; rm -r d; mkdir d; mv merged moved
  python3 -c "import mmap, os
m = mmap.mmap(os.open('map', os.O_RDWR), 4); m[:3] = b'MAP'; m.close()"
  sleep 2
  echo $1-open=$(cat <&9) $(cat held)
)
show() (
  cd $1/m
  echo $1-$2=$(ls -A) : $(cat hard) : $(cat links) : $(cat links2) : $(cat new3) : $(cat map) : $(ls -A d) : $(ls moved) \
    : $(cat moved/x moved/y) : $(stat -c %a meta) : $(cat meta) : $(stat -c %Y times)
)
empty() { rm -rf $1/m/*; echo $1-left=$(ls -A $1/m | wc -l); umount $1/m; }
cd /data
"#;

/// The output of `show`, which does not depend on the file system of the layers.
const SHOWN: &str = "d hard held links links2 map meta moved new3 owner pipe symbolic times : f more : links more : links : \
     new : MAP : : x y : x y : 640 : meta : 1000";

fn run(runtime: &Runtime, volume: &Path, script: &str) -> CommandResult {
    fs::write(volume.join("script"), format!("{FUNCTIONS}{script}")).unwrap();
    // Mapping root into a user namespace needs CAP_SETFCAP.
    let bundle = ["bounding", "effective", "permitted"]
        .iter()
        .fold(Bundle::debian(["sh", "/data/script"]).with_capabilities().bind(volume, "/data", &[]), |bundle, set| {
            bundle.with(&format!("/process/capabilities/{set}/-"), json!("CAP_SETFCAP"))
        });
    runtime.run(&bundle).ok()
}

fn assert_values(done: &CommandResult, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let value_there = done.value(name);
        assert_eq!(value_there.split_whitespace().collect::<Vec<_>>().join(" "), *value, "{name}");
    }
}

#[test]
fn an_overlay_on_a_volume_behaves_as_on_the_host() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    let script = "for at in trusted user; do layers $at; done; join trusted; join user ,userxattr; \
        for at in trusted user; do change $at & done; wait; \
        for at in trusted user; do chown 7:8 $at/m/owner; chown -h 7:8 $at/m/symbolic; chmod 600 $at/m/pipe; \
        show $at changed; umount $at/m; done; join trusted; join user ,userxattr; \
        for at in trusted user; do show $at again; umount $at/m; \
        echo $at-owners=$(stat -c %u:%g $at/u/owner $at/u/symbolic) $(stat -c %a $at/u/pipe); \
        echo $at-whiteout=$(stat -c '%F %t:%T' $at/u/gone); done";
    let done = run(&runtime, volume.path(), script);
    for layers in ["trusted", "user"] {
        assert_values(
            &done,
            &[
                (&format!("{layers}-open"), "held more held more"),
                (&format!("{layers}-changed"), SHOWN),
                (&format!("{layers}-again"), SHOWN),
                (&format!("{layers}-owners"), "7:8 7:8 600"),
                (&format!("{layers}-whiteout"), "character special file 0:0"),
            ],
        );
    }
    // The layers work in another machine.
    let script = "join trusted; join user ,userxattr; for at in trusted user; do show $at later; empty $at; done";
    let done = run(&runtime, volume.path(), script);
    for layers in ["trusted", "user"] {
        assert_values(&done, &[(&format!("{layers}-later"), SHOWN), (&format!("{layers}-left"), "0")]);
    }
}

#[test]
fn overlay_options_work_with_any_layers() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    // Renaming a merged directory needs a redirect. With metacopy, a change of metadata does not copy the file's contents.
    let script = r#"
layers r; head -c 65536 /dev/zero >>r/a/meta; join r ,redirect_dir=on,metacopy=on
python3 -c "import os; os.rename('r/m/merged', 'r/m/moved')"; chmod 640 r/m/meta; sleep 2
echo redirect=$(ls r/m/moved) : $(cat r/m/moved/y) : $(head -n 1 r/m/meta); umount r/m
echo metadata=$(($(stat -c %b r/u/meta) < 128)); join r ,redirect_dir=on,metacopy=on; echo again=$(ls r/m/moved) : $(head -n 1 r/m/meta); umount r/m
layers v; join v ,volatile; echo more >>v/m/f; sleep 2; echo volatile=$(cat v/m/f); umount v/m
layers i; join i ,index=on; echo more >>i/m/links; sleep 2; echo index=$(cat i/m/links); umount i/m
join i ,index=on; echo index-again=$(cat i/m/links); umount i/m
mkdir t; mount -t tmpfs tmpfs t; mkdir t/u t/k t/m
mount -t overlay overlay -o lowerdir=/etc,upperdir=t/u,workdir=t/k t/m; echo more >>t/m/hostname; rm t/m/passwd; sleep 2
echo root=$(tail -n 1 t/m/hostname) $(ls t/m | grep -c passwd$); umount t/m; umount t
layers n; unshare -Urm sh -ec '. /data/functions; join n ,userxattr; change n; show n changed; empty n'
"#;
    fs::write(volume.path().join("functions"), FUNCTIONS).unwrap();
    let done = run(&runtime, volume.path(), script);
    assert_values(
        &done,
        &[
            ("redirect", "x y : y : meta"),
            ("metadata", "1"),
            ("again", "x y : meta"),
            ("volatile", "f more"),
            ("index", "links more"),
            ("index-again", "links more"),
            ("root", "more 0"),
            ("n-open", "held more held more"),
            ("n-changed", SHOWN),
            ("n-left", "0"),
        ],
    );
}

#[test]
fn an_overlay_shows_changes_by_the_host_in_a_lower_layer() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    let script = "layers h; join h; echo more >>h/m/f; cat h/m/f h/m/meta >/dev/null; touch ready; \
        while ! [ -e go ]; do sleep 0.1; done; sleep 2; echo below=$(cat h/m/meta); \
        ls h/m >/dev/null && empty h";
    fs::write(volume.path().join("script"), format!("{FUNCTIONS}{script}")).unwrap();
    let bundle = Bundle::debian(["sh", "/data/script"]).with_capabilities().bind(volume.path(), "/data", &[]);
    let done = std::thread::scope(|scope| {
        let running = scope.spawn(|| runtime.run(&bundle));
        let place = |name: &str| volume.path().join(name);
        assert!(vmrt_tests::eventually(vmrt_tests::TIMEOUT, || place("ready").exists().then_some(())).is_some());
        // Only the overlay may change the upper layer, so change a lower one.
        fs::write(place("new"), "changed\n").unwrap();
        fs::rename(place("new"), place("h/a/meta")).unwrap();
        fs::write(place("go"), "").unwrap();
        running.join().unwrap().ok()
    });
    // On the host itself, an overlay continues to show its cached state.
    if is_vmrt() {
        assert_values(&done, &[("below", "changed")]);
    }
    assert_values(&done, &[("h-left", "0")]);
}
