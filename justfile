# What to type. Every recipe is one command; the logic is in tools/.

# List the recipes
default:
    @just --list

# The whole story in half a minute, on a tree it makes by itself
demo:
    cargo run --release -- demo

# Install what is missing, build, check, run every test
test *arguments:
    tools/test {{arguments}}

# Format the code
format:
    cargo fmt --all

# Lints, warnings as errors
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# The documentation of the crates
doc:
    cargo doc --workspace --no-deps --open

# Measure beside CRIU and write docs/benchmarks.md
bench *arguments:
    tools/bench --write {{arguments}}

# Fetch the peer, print its command line
peer:
    tools/criu-peer

# Fuzz the reader of images (nightly toolchain, cargo-fuzz)
fuzz *seconds:
    tools/fuzz {{seconds}}
