//! libforgetscope_preload.so: measures a trainer that nobody changes.
//!
//! Loaded with LD_PRELOAD, it takes the place of the collective functions of NCCL and MPI, calls the real ones, and looks at
//! the buffers that they leave behind: reduced gradients, gathered parameters. docs/preload.md is for users.
//!
//! ```text
//! nccl ─┐   interposed functions: the real call, then ▼
//! mpi ──┴─▶ engine     the one session of the process
//!             └─▶ session     one collective after the other: which step, which bucket, what to do
//!                   ├─▶ signature   what a step is, by the sequence of collectives
//!                   ├─▶ threads     whether it is one sequence at all
//!                   ├─▶ buckets     the tensors in a bucket, by the layout file or one for all
//!                   ├─▶ parameters  gathered buffers, while they are there
//!                   ├─▶ tasks       which task is trained, said by variables or by `forgetscope ctl`
//!                   └─▶ instrument  the library itself, through its C functions
//! ```
//!
//! The trainer comes first. The real call is made with the arguments as they are, its result is what the trainer gets,
//! nothing unwinds out of here, and without `FGS_PRELOAD` every function is one load and a jump.
//!
//! | file | concept |
//! |---|---|
//! | `boundary` | on or off, no recursion, no unwinding, forks, the end of the process |
//! | `real`, `objects` | where the real functions are: what the loader has loaded |
//! | `environment`, `settings`, `layout` | what the user says: variables, a file |
//! | `launcher` | which rank this is, and of which job |
//! | `memory`, `readable` | where a buffer lies, host or CUDA device, and whether it can be read |
//! | `say` | messages |
//! | `watch` | nothing comes through: says why that may be |

#[macro_use]
mod say;

mod boundary;
mod buckets;
mod engine;
mod environment;
mod instrument;
mod launcher;
mod layout;
mod memory;
mod mpi;
mod nccl;
mod objects;
mod parameters;
mod readable;
mod real;
mod session;
mod settings;
mod signature;
mod tasks;
mod threads;
mod watch;
