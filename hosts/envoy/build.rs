//! Guests call back from threads of their own for as long as the process lives, so the module must never be unloaded, also
//! where a configuration forgets `do_not_close`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
