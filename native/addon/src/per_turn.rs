//! The functions that are called every turn, or for every payload: bare callbacks of Node-API.
//!
//! `#[napi]` puts about 0.1 us of its own around each call (scopes of borrows, conversions); as methods of a class they would cost
//! 0.3 us (measured on Node 24). Here a call is: read the numbers, do the work, give a number back.
//!
//! All arguments are numbers; the first is the id of a queue of this thread. What is no number throws a TypeError.

use crate::io::on_engine;
use napi::bindgen_prelude::{Env, JsValue, Object};
use napi::sys;
use napi_derive::napi;
use std::ptr::null_mut;
use xsan_io::Fault;

/// The numbers a call was given.
struct Arguments<const N: usize> {
    env: sys::napi_env,
    values: [sys::napi_value; N],
}

impl<const N: usize> Arguments<N> {
    /// # Safety
    /// `env` and `info` are those of the callback that is running.
    unsafe fn new(env: sys::napi_env, info: sys::napi_callback_info) -> Self {
        let mut values = [null_mut(); N];
        let mut count = N;
        // SAFETY: there is room for `count` values; those that were not given become undefined.
        unsafe { sys::napi_get_cb_info(env, info, &mut count, values.as_mut_ptr(), null_mut(), null_mut()) };
        Arguments { env, values }
    }

    fn i32(&self, index: usize) -> Result<i32, Fault> {
        let mut number = 0;
        // SAFETY: the value belongs to the callback that is running, whose scope is open.
        match unsafe { sys::napi_get_value_int32(self.env, self.values[index], &mut number) } {
            sys::Status::napi_ok => Ok(number),
            _ => Err(Fault::misuse("an argument that is no number")),
        }
    }

    /// Whole numbers from 0 on; others are refused, not wrapped.
    fn u32(&self, index: usize) -> Result<u32, Fault> {
        let mut number = 0.0;
        // SAFETY: as above.
        let status = unsafe { sys::napi_get_value_double(self.env, self.values[index], &mut number) };
        if status == sys::Status::napi_ok && (0.0..=f64::from(u32::MAX)).contains(&number) {
            Ok(number as u32)
        } else {
            Err(Fault::misuse("an argument that is no number from 0 on"))
        }
    }
}

enum Number {
    /// Costs nothing where a double of the same value would be an object.
    Int32(i32),
    Double(f64),
}

/// What the call returns: a number, or an exception is pending (and whatever is returned is ignored).
fn give_back(env: sys::napi_env, result: Result<Number, Fault>) -> sys::napi_value {
    let mut value = null_mut();
    match result {
        // SAFETY: the scope of the callback is open; `value` is written by the call.
        Ok(Number::Int32(number)) => unsafe { sys::napi_create_int32(env, number, &mut value) },
        // SAFETY: as above.
        Ok(Number::Double(number)) => unsafe { sys::napi_create_double(env, number, &mut value) },
        Err(fault) => {
            let code = std::ffi::CString::new(fault.code).unwrap_or_default();
            let message = std::ffi::CString::new(fault.message).unwrap_or_default();
            // SAFETY: both are C strings that live until the call returns.
            unsafe { sys::napi_throw_error(env, code.as_ptr(), message.as_ptr()) }
        }
    };
    value
}

/// (id, descriptors, timeout_ms): takes descriptors, waits for completions; how many there are.
unsafe extern "C" fn queue_turn(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: handed on as they came.
    let given = unsafe { Arguments::<3>::new(env, info) };
    let turn = || {
        let (descriptors, timeout_ms) = (given.u32(1)?, given.i32(2)?);
        on_engine(given.u32(0)?, |engine| engine.turn(descriptors as usize, timeout_ms))
    };
    give_back(env, turn().map(|count| Number::Int32(count as i32)))
}

/// (id, descriptors): takes descriptors without waiting.
unsafe extern "C" fn queue_flush(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: handed on as they came.
    let given = unsafe { Arguments::<2>::new(env, info) };
    let flush = || {
        let descriptors = given.u32(1)?;
        on_engine(given.u32(0)?, |engine| engine.flush(descriptors as usize))
    };
    give_back(env, flush().map(|()| Number::Int32(0)))
}

/// (id): the boot-time clock in ms, which is stored for the caller as well.
unsafe extern "C" fn queue_sample_clock(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: handed on as they came.
    let given = unsafe { Arguments::<1>::new(env, info) };
    give_back(env, given.u32(0).and_then(|id| on_engine(id, |engine| Ok(Number::Double(engine.sample_clock())))))
}

/// (id, page, delta_bytes, length_bytes): CRC-32C of a range of the arena, as a signed number.
unsafe extern "C" fn queue_crc32c(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    // SAFETY: handed on as they came.
    let given = unsafe { Arguments::<4>::new(env, info) };
    let crc = || {
        let (page, delta_bytes, length_bytes) = (given.i32(1)?, given.i32(2)?, given.i32(3)?);
        on_engine(given.u32(0)?, |engine| match engine.arena().range(page, delta_bytes, length_bytes) {
            Some(start) => Ok(engine.arena().crc32c(start, length_bytes as usize)),
            None => Err(Fault::misuse(format!("page {page} + {delta_bytes} + {length_bytes} bytes is outside the arena"))),
        })
    };
    give_back(env, crc().map(|crc| Number::Int32(crc as i32)))
}

#[napi(module_exports)]
pub fn add_per_turn_calls(exports: Object, env: Env) -> napi::Result<()> {
    let calls: [(&std::ffi::CStr, sys::napi_callback); 4] = [
        (c"queueTurn", Some(queue_turn)),
        (c"queueFlush", Some(queue_flush)),
        (c"queueSampleClock", Some(queue_sample_clock)),
        (c"queueCrc32c", Some(queue_crc32c)),
    ];
    for (name, callback) in calls {
        let mut function = null_mut();
        // SAFETY: `env` and `exports` are those of the module that is being loaded; the callbacks live as long as the code does.
        let status = unsafe {
            match sys::napi_create_function(env.raw(), name.as_ptr(), name.count_bytes() as isize, callback, null_mut(), &mut function) {
                sys::Status::napi_ok => sys::napi_set_named_property(env.raw(), exports.raw(), name.as_ptr(), function),
                failed => failed,
            }
        };
        if status != sys::Status::napi_ok {
            return Err(napi::Error::from_reason(format!("cannot register {name:?}")));
        }
    }
    Ok(())
}
