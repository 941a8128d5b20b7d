//! The serial line to the controller: CMSDK APB UART 0. What is received waits in a queue; what is sent goes at once.
//!
//! **Why `unsafe`.** Registers and the table of interrupts, by hand.
#![allow(unsafe_code)]

use core::cell::RefCell;
use core::convert::Infallible;
use core::future::poll_fn;
use core::task::Poll;

use cortex_m::peripheral::NVIC;
use critical_section::Mutex;
use embassy_sync::waitqueue::AtomicWaker;
use embedded_io::ErrorType;
use embedded_io_async::{Read, Write};
use heapless::Deque;

use crate::clock;

/// Data, state, control, interrupt, divider.
const UART: *mut u32 = 0x4000_4000 as *mut u32;
const SENDING: u32 = 1;
const RECEIVED: u32 = 2;
const RECEIVE_INTERRUPT: usize = 0;
/// Several of the longest packets.
const QUEUE: usize = 4_096;

static QUEUED: Mutex<RefCell<Deque<u8, QUEUE>>> = Mutex::new(RefCell::new(Deque::new()));
static ARRIVED: AtomicWaker = AtomicWaker::new();

/// An entry in the table of interrupts.
#[repr(C)]
pub union Vector {
    handler: unsafe extern "C" fn(),
    unused: usize,
}

unsafe extern "C" {
    fn DefaultHandler();
}

/// The table, where the linker script looks for it.
#[unsafe(link_section = ".vector_table.interrupts")]
#[unsafe(no_mangle)]
pub static __INTERRUPTS: [Vector; 32] = {
    let mut table = [const { Vector { handler: DefaultHandler } }; 32];
    table[RECEIVE_INTERRUPT] = Vector { handler: received };
    table[clock::TIMER_INTERRUPT] = Vector { handler: clock::rung };
    table
};

struct Line(usize);

// SAFETY: it is but the number of an interrupt, below 32.
unsafe impl cortex_m::interrupt::InterruptNumber for Line {
    fn number(self) -> u16 {
        self.0 as u16
    }
}

impl Clone for Line {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Line {}

/// Switches the line on, and both interrupts.
pub fn start() {
    // SAFETY: the line is nobody else's; a divider of 16 is the shortest, 0b1011 is both directions and the interrupt of
    // what is received. Both handlers share what they share in critical sections.
    unsafe {
        UART.add(4).write_volatile(16);
        UART.add(2).write_volatile(0b1011);
        NVIC::unmask(Line(RECEIVE_INTERRUPT));
        NVIC::unmask(Line(clock::TIMER_INTERRUPT));
    }
}

unsafe extern "C" fn received() {
    // SAFETY: the line's registers; reading the data is what takes it.
    unsafe {
        UART.add(3).write_volatile(RECEIVED);
        while UART.add(1).read_volatile() & RECEIVED != 0 {
            let byte = UART.read_volatile() as u8;
            let taken = critical_section::with(|section| QUEUED.borrow_ref_mut(section).push_back(byte));
            taken.expect("the controller sends no more than the host has buffers for");
        }
    }
    ARRIVED.wake();
}

/// What comes.
pub struct Receiver;

/// What goes.
pub struct Sender;

impl ErrorType for Receiver {
    type Error = Infallible;
}

impl ErrorType for Sender {
    type Error = Infallible;
}

impl Read for Receiver {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Infallible> {
        poll_fn(|context| {
            ARRIVED.register(context.waker());
            let read = critical_section::with(|section| {
                let mut queued = QUEUED.borrow_ref_mut(section);
                let mut read = 0;
                while read < into.len()
                    && let Some(byte) = queued.pop_front()
                {
                    into[read] = byte;
                    read += 1;
                }
                read
            });
            if read > 0 { Poll::Ready(Ok(read)) } else { Poll::Pending }
        })
        .await
    }
}

impl Write for Sender {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        for byte in bytes {
            // SAFETY: the line's registers.
            unsafe {
                while UART.add(1).read_volatile() & SENDING != 0 {}
                UART.write_volatile(u32::from(*byte));
            }
        }
        Ok(bytes.len())
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
