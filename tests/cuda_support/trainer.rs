//! A trainer whose tensors lie on a CUDA device, and which calls the library through its C functions. It computes on the
//! host and copies to the device, so that its own driver calls are none of those that the library makes.

use super::{Bytes, driver};
use cudarc::driver::sys::{CUcontext, CUstream};
use forgetscope::abi::*;
use forgetscope::ring::{Poll, Reader, Record};
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;

const MAGIC: u32 = 0x3153_4746;

/// DLPack's device types.
pub const HOST: i32 = 1;
pub const CUDA: i32 = 2;

/// Rows and columns of the two tensors.
const SHAPES: [[i64; 2]; 2] = [[40, 60], [1, 300]];
const NAMES: [&CStr; 2] = [c"mlp.weight", c"mlp.bias"];

/// A call that was refused, and the sentence.
#[derive(Clone, Debug)]
pub struct Refused {
    pub call: &'static str,
    pub status: fgs_status,
    pub text: String,
}

/// What is current on the thread while the library is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Around {
    /// The context of the tensors.
    Own,
    Nothing,
    /// Another one, above that of the tensors.
    Other(CUcontext),
}

pub struct Trainer {
    pub scope: *mut fgs_scope,
    /// The library's calls are ordered on these, one after the other. The legacy stream waits for them.
    pub streams: Vec<CUstream>,
    pub around: Around,
    /// The thread's stack of contexts is looked at after each call. Takes calls of the driver's.
    pub is_watched: bool,
    own: CUcontext,
    calls: usize,
    ordinal: i32,
    pub parameters: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    /// Gradients and parameters; none if the trainer's own are measured where they are, in host memory.
    device: Option<[Vec<Bytes>; 2]>,
    pub refused: Vec<Refused>,
    step: u64,
    directory: tempfile::TempDir,
    /// Waits after each step until it is evaluated, so that none is left out on a machine that is busy.
    pub is_patient: bool,
    /// Copies to the device may fail: the test made them.
    pub may_fail: bool,
    /// In each step gradients get other memory before they are read, and parameters in the update. What they leave holds
    /// NaN.
    pub is_moving: bool,
    /// Parameters get other memory in the update of this step, and nothing moves otherwise.
    pub moves_in: Option<u64>,
    /// The second tensor is registered when this step has begun.
    pub registers_in: Option<u64>,
    spare: Option<[Vec<Bytes>; 2]>,
}

/// The context that is current on this thread.
pub fn current() -> CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one handle.
    unsafe { driver!(cuCtxGetCurrent(&mut context)) };
    context
}

/// What calls were refused; what the ring holds.
pub struct Ended {
    pub refused: Vec<Refused>,
    pub records: Vec<Record>,
}

impl Trainer {
    /// Allocates its tensors in the current context, which is of the device with this ordinal.
    pub fn new(ordinal: i32) -> Self {
        let buffers = || SHAPES.map(|[rows, cols]| Bytes::new(4 * (rows * cols) as usize)).into();
        let [device, spare] = [(); 2].map(|()| Some([buffers(), buffers()]));
        let trainer = Self { own: current(), ordinal, device, spare, ..Self::on_host() };
        trainer.upload(1, &trainer.parameters);
        trainer
    }

    /// Needs no driver.
    pub fn on_host() -> Self {
        let sizes = SHAPES.map(|[rows, cols]| (rows * cols) as usize);
        let values = |k: usize| crate::device_support::values(500 + k as u64, sizes[k]);
        Self {
            scope: std::ptr::null_mut(),
            streams: vec![std::ptr::null_mut()],
            around: Around::Own,
            is_watched: false,
            own: std::ptr::null_mut(),
            calls: 0,
            ordinal: 0,
            parameters: (0..2).map(values).collect(),
            gradients: sizes.iter().map(|&size| vec![0.0; size]).collect(),
            device: None,
            refused: Vec::new(),
            step: 0,
            directory: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory"),
            is_patient: true,
            may_fail: false,
            is_moving: false,
            moves_in: None,
            registers_in: None,
            spare: None,
        }
    }

    fn upload(&self, which: usize, values: &[Vec<f32>]) {
        let buffers = self.device.as_ref().map_or(&[][..], |device| &device[which]);
        for (buffer, values) in buffers.iter().zip(values) {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            if self.may_fail {
                // SAFETY: the buffer holds as many bytes.
                let _ = unsafe {
                    cudarc::driver::sys::cuMemcpyHtoD_v2(buffer.address, bytes.as_ptr().cast::<c_void>(), bytes.len())
                };
            } else {
                buffer.write(&bytes);
            }
        }
    }

    /// Where a tensor's data is on the device.
    pub fn address(&self, tensor: usize, data: fgs_data) -> u64 {
        self.device.as_ref().expect("a device")[data as usize][tensor].address
    }

    /// The parameters as the device has them.
    pub fn downloaded(&self) -> Vec<Vec<f32>> {
        let values = |buffer: &Bytes| {
            let bytes = buffer.read();
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        };
        self.device.iter().flat_map(|device| &device[1]).map(values).collect()
    }

    /// Calls the library as a trainer does whose thread has other contexts.
    fn call(&mut self, name: &'static str, call: impl FnOnce(*mut fgs_scope, *mut c_void) -> fgs_status) {
        let stream = self.streams[self.calls % self.streams.len()];
        self.calls += 1;
        // SAFETY: contexts of the test's; what is pushed is popped.
        unsafe {
            match self.around {
                Around::Own => {}
                Around::Nothing => driver!(cuCtxSetCurrent(std::ptr::null_mut())),
                Around::Other(context) => driver!(cuCtxPushCurrent_v2(context)),
            }
            let status = call(self.scope, stream.cast());
            if self.is_watched {
                let stack = match self.around {
                    Around::Own => vec![self.own],
                    Around::Nothing => Vec::new(),
                    Around::Other(context) => vec![context, self.own],
                };
                for expected in stack {
                    let mut found = std::ptr::null_mut();
                    driver!(cuCtxPopCurrent_v2(&mut found));
                    assert!(found == expected, "{name} changed the stack of contexts");
                }
                assert!(current().is_null(), "{name} left a context behind");
            }
            if self.is_watched || self.around != Around::Own {
                driver!(cuCtxSetCurrent(self.own));
            }
            self.note(name, status);
        }
    }

    /// Takes note of a status.
    fn note(&mut self, call: &'static str, status: fgs_status) {
        if status != fgs_status::FGS_OK {
            // SAFETY: never NULL, and valid until the next call.
            let text = unsafe { CStr::from_ptr(fgs_last_error()) }.to_string_lossy().into_owned();
            assert!(!text.is_empty(), "{call}: {status:?} without a sentence");
            assert_ne!(status, fgs_status::FGS_ERROR_INTERNAL, "{call}: {text}");
            self.refused.push(Refused { call, status, text });
        }
    }

    fn ring_path(&self) -> PathBuf {
        self.directory.path().join("run.ring")
    }

    /// Opens a scope that samples one step of `every`, and binds everything.
    pub fn open(&mut self, every: u64, budget_bytes: u64) {
        let path = CString::new(self.ring_path().to_str().expect("a path")).expect("a path");
        let none = std::ptr::null();
        let options = fgs_options {
            size: size_of::<fgs_options>() as u32,
            magic: MAGIC,
            run: none,
            ring_path: path.as_ptr(),
            include: none,
            exclude: none,
            ring_slots: 4096,
            every,
            start_step: u64::MAX,
            end_step: u64::MAX,
            budget_bytes,
            reference_budget: -1.0,
            threads: 1,
            rank: 0,
            world_size: 1,
            sketch_head: 256,
            sketch_matrix: 512,
            window: 8,
        };
        // SAFETY: the options are whole, the path is terminated.
        let mut scope = std::ptr::null_mut();
        self.call("fgs_open", |_, _| unsafe { fgs_open(&options, &mut scope) });
        self.scope = scope;
        self.register(0);
        if self.registers_in.is_none() {
            self.register(1);
        }
    }

    fn register(&mut self, k: usize) {
        let numel = SHAPES[k].iter().product::<i64>() as u64;
        let tensor = fgs_tensor {
            size: size_of::<fgs_tensor>() as u32,
            magic: MAGIC,
            name: NAMES[k].as_ptr(),
            numel,
            rows: 0,
            cols: 0,
            role: 0,
            layer: 0,
            expert: -1,
            group: 0,
            head_layout: 0,
            head_axis: u32::MAX,
            head_count: 0,
            kv_head_count: 0,
            head_offset: 0,
            kv_head_offset: 0,
            flags: 0,
            replica: 0,
            tied_to: u32::MAX,
            layer_count: 1,
        };
        let mut id = 0;
        // SAFETY: the tensor is whole, its name terminated.
        self.call("fgs_register", |scope, _| unsafe { fgs_register(scope, &tensor, &mut id) });
        for (which, data) in [fgs_data::FGS_GRAD, fgs_data::FGS_PARAM].into_iter().enumerate() {
            let own = [&self.gradients, &self.parameters][which][k].as_ptr() as u64;
            match self.device.as_ref().map(|device| device[which][k].address) {
                Some(address) => self.bind(k, data, (CUDA, self.ordinal), address),
                None => self.bind(k, data, (HOST, 0), own),
            }
        }
    }

    /// Says that a tensor's data is at this address of a device of DLPack's.
    pub fn bind(&mut self, tensor: usize, data: fgs_data, (device_type, device_id): (i32, i32), address: u64) {
        let mut shape = SHAPES[tensor];
        let described = fgs_dltensor {
            data: address as *mut c_void,
            device_type,
            device_id,
            ndim: 2,
            dtype_code: 2,
            dtype_bits: 32,
            dtype_lanes: 1,
            shape: shape.as_mut_ptr(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        };
        // SAFETY: the description is whole; what it describes is the trainer's, or refused.
        self.call("fgs_bind", |scope, _| unsafe { fgs_bind(scope, tensor as u32, data as u32, &described) });
    }

    /// A quadratic loss about another point for each task, and noise.
    fn differentiate(&mut self, task: u64) {
        let one = |(k, parameters): (usize, &Vec<f32>)| {
            let optimum = crate::device_support::values(600 + 10 * task + k as u64, parameters.len());
            let noise = crate::device_support::values(1_000 + 2 * self.step + k as u64, parameters.len());
            let gradients = &mut self.gradients[k];
            for (g, ((x, y), n)) in gradients.iter_mut().zip(parameters.iter().zip(optimum).zip(noise)) {
                *g = x - y + 0.1 * n;
            }
        };
        self.parameters.iter().enumerate().for_each(one);
        self.upload(0, &self.gradients);
    }

    pub fn train(&mut self, task: u64, steps: u64) {
        for _ in 0..steps {
            self.differentiate(task);
            self.begin_and_read();
            self.descend();
            self.relocate(fgs_data::FGS_PARAM);
            self.end();
            if self.is_patient {
                self.flush();
            }
        }
    }

    fn descend(&mut self) {
        for (parameters, gradients) in self.parameters.iter_mut().zip(&self.gradients) {
            parameters.iter_mut().zip(gradients).for_each(|(x, g)| *x -= 0.1 * g);
        }
        self.upload(1, &self.parameters);
    }

    pub fn begin_and_read(&mut self) {
        let step = self.step;
        // SAFETY: the scope is open.
        self.call("fgs_step_begin", |scope, _| unsafe { fgs_step_begin(scope, step) });
        if self.registers_in == Some(step) {
            self.register(1);
        }
        self.relocate(fgs_data::FGS_GRAD);
        // SAFETY: the scope is open; the tensors are the trainer's.
        self.call("fgs_gradients_ready", |scope, stream| unsafe { fgs_gradients_ready(scope, 0.5, 0, stream) });
    }

    fn relocate(&mut self, data: fgs_data) {
        let moves = self.is_moving || matches!(data, fgs_data::FGS_PARAM) && self.moves_in == Some(self.step);
        let (Some(device), Some(spare), true) = (&mut self.device, &mut self.spare, moves) else { return };
        let which = data as usize;
        std::mem::swap(&mut device[which], &mut spare[which]);
        spare[which].iter().for_each(|left| left.write(&vec![0xff; left.len]));
        let addresses = [0, 1].map(|k| device[which][k].address as *mut c_void);
        self.upload(which, [&self.gradients, &self.parameters][which]);
        let (ids, count) = ([0, 1], 2);
        // SAFETY: the scope is open; there are as many ids and addresses, and the tensors are the trainer's.
        self.call("fgs_rebind", |scope, _| unsafe {
            fgs_rebind(scope, data as u32, ids.as_ptr(), addresses.as_ptr(), count)
        });
    }

    pub fn end(&mut self) {
        // SAFETY: as above.
        self.call("fgs_step_end", |scope, stream| unsafe { fgs_step_end(scope, 1, stream) });
        self.step += 1;
    }

    pub fn begin_task(&mut self, name: &CStr) {
        // SAFETY: the scope is open; the name is terminated.
        self.call("fgs_task_begin", |scope, _| unsafe { fgs_task_begin(scope, name.as_ptr()) });
    }

    /// References of two batches, a snapshot, the end of the task.
    pub fn leave_task(&mut self, task: u64, name: &CStr) {
        for batch in 0..2 {
            self.step += 1_000 * (batch + 1);
            self.differentiate(task);
            self.step -= 1_000 * (batch + 1);
            // SAFETY: the scope is open; the name is terminated; the tensors are the trainer's.
            self.call("fgs_reference_add", |scope, stream| unsafe {
                fgs_reference_add(scope, name.as_ptr(), 4, 1.0, stream)
            });
        }
        // SAFETY: as above.
        self.call("fgs_snapshot", |scope, stream| unsafe { fgs_snapshot(scope, name.as_ptr(), stream) });
        // SAFETY: as above.
        self.call("fgs_task_end", |scope, _| unsafe { fgs_task_end(scope) });
    }

    /// Two tasks, one after the other.
    pub fn train_two_tasks(&mut self) {
        self.begin_task(c"first");
        self.train(0, 2);
        self.leave_task(0, c"first");
        self.begin_task(c"second");
        self.train(1, 3);
    }

    /// A small curvature run of a task, from wherever the parameters are; true if it came to its end.
    pub fn measure_curvature(&mut self, task: u64, name: &CStr, path_points: u32) -> bool {
        let settings = fgs_curvature {
            size: size_of::<fgs_curvature>() as u32,
            magic: MAGIC,
            task: name.as_ptr(),
            lanczos_steps: 2,
            trace_vectors: 1,
            density_vectors: 1,
            eigenvectors: 1,
            path_points,
            block_vectors: 1,
            blocks: std::ptr::null(),
            block_count: 0,
            relative_step: 1e-3,
            seed: 1,
        };
        let before = self.refused.len();
        // SAFETY: the scope is open, the settings are whole; the tensors are the trainer's, and left alone meanwhile.
        self.call("fgs_curvature_begin", |scope, _| unsafe { fgs_curvature_begin(scope, &settings) });
        let mut request = fgs_curvature_request {
            size: size_of::<fgs_curvature_request>() as u32,
            magic: MAGIC,
            want: 0,
            index: 0,
            total: 0,
        };
        let own = self.parameters.clone();
        while self.refused.len() == before {
            // SAFETY: as above.
            self.call("fgs_curvature_next", |scope, _| unsafe { fgs_curvature_next(scope, &mut request) });
            if request.want == 0 || self.refused.len() > before {
                break;
            }
            // The loss at the parameters as they are now.
            self.parameters = self.downloaded();
            self.differentiate(task);
            let loss: f64 = self.gradients.iter().flatten().map(|g| 0.5 * f64::from(*g).powi(2)).sum();
            // SAFETY: as above.
            self.call("fgs_curvature_submit", |scope, stream| unsafe {
                fgs_curvature_submit(scope, loss, 1.0, stream)
            });
        }
        self.parameters = own;
        // SAFETY: as above.
        self.call("fgs_curvature_end", |scope, _| unsafe { fgs_curvature_end(scope) });
        request.want == 0 && self.refused.len() == before
    }

    pub fn flush(&mut self) {
        // SAFETY: the scope is open.
        self.call("fgs_flush", |scope, _| unsafe { fgs_flush(scope) });
    }

    pub fn close(&mut self) -> Ended {
        // SAFETY: opened by `open`, and not used again.
        self.call("fgs_close", |scope, _| unsafe { fgs_close(scope) });
        self.scope = std::ptr::null_mut();
        let mut records = Vec::new();
        if let Ok(mut reader) = Reader::open(self.ring_path()) {
            loop {
                match reader.poll().expect("a ring of ours") {
                    Poll::Record(record) => records.push(record),
                    Poll::Lost(count) => panic!("{count} records are lost"),
                    Poll::Empty => panic!("the ring is still open"),
                    Poll::Closed => break,
                }
            }
            std::fs::remove_file(self.ring_path()).expect("the ring's file");
        }
        Ended { refused: std::mem::take(&mut self.refused), records }
    }
}
