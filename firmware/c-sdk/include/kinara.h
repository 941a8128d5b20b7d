/* Kinara for makers of other devices. Made from the library's source: do not edit. */

#ifndef KINARA_H
#define KINARA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The Kinara service and its characteristics, least significant byte first as on the air. */
#define KINARA_SERVICE_UUID_LE        {0x2e,0x4f,0xd5,0x09,0x1c,0x7a,0x01,0x8b,0x61,0x52,0x61,0x4e,0x01,0x00,0x69,0x6b}
#define KINARA_STREAM_UUID_LE         {0x2e,0x4f,0xd5,0x09,0x1c,0x7a,0x01,0x8b,0x61,0x52,0x61,0x4e,0x02,0x00,0x69,0x6b}
#define KINARA_BACKLOG_UUID_LE        {0x2e,0x4f,0xd5,0x09,0x1c,0x7a,0x01,0x8b,0x61,0x52,0x61,0x4e,0x03,0x00,0x69,0x6b}
#define KINARA_CONTROL_UUID_LE        {0x2e,0x4f,0xd5,0x09,0x1c,0x7a,0x01,0x8b,0x61,0x52,0x61,0x4e,0x04,0x00,0x69,0x6b}
#define KINARA_STATUS_UUID_LE         {0x2e,0x4f,0xd5,0x09,0x1c,0x7a,0x01,0x8b,0x61,0x52,0x61,0x4e,0x05,0x00,0x69,0x6b}


// The most sensors of a device.
#define KINARA_MAX_SENSORS 16

// The fewest pages of flash.
#define KINARA_MIN_FLASH_PAGES 7

// The longest request of a gateway, bytes.
#define KINARA_MAX_REQUEST 200

// The longest value on any characteristic, bytes: the ATT MTU has to be 247 or more.
#define KINARA_MAX_VALUE 244

// Bytes of the value of the status characteristic.
#define KINARA_STATUS_BYTES 37

// Bytes of memory for one device, on every target.
#define KINARA_MEMORY_BYTES (24 * 1024)

// How that memory has to be aligned, bytes.
#define KINARA_MEMORY_ALIGN 8

// Heart rate, 0.1 beats per minute.
#define KINARA_HEART_RATE 1

// Interval between two successive beats, 1 ms.
#define KINARA_RR_INTERVAL 2

// Skin temperature, 0.01 °C.
#define KINARA_SKIN_TEMPERATURE 3

// Ambient temperature beside the skin, 0.01 °C.
#define KINARA_AMBIENT_TEMPERATURE 4

// Electrodermal activity (skin conductance), 0.001 µS.
#define KINARA_EDA 5

// Peripheral oxygen saturation, 0.1 %.
#define KINARA_SPO2 6

// Activity counts in the last 30 s.
#define KINARA_ACTIVITY_COUNTS 7

// Steps since the count before.
#define KINARA_STEPS 8

// Battery, 1 %.
#define KINARA_BATTERY 9

// Photoplethysmogram, raw counts.
#define KINARA_PPG 64

// Acceleration x, y, z, 0.001 g.
#define KINARA_ACCELERATION 65

// 0 is good; everything else is negative, and the call has changed nothing.
enum kinara_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Done.
    KINARA_STATUS_OK = 0,
    // A pointer that has to point somewhere is null, or is not aligned.
    KINARA_STATUS_NULL = -1,
    // Not now: the handle was not initialised (or was shut down), or the link is not up.
    KINARA_STATUS_NOT_READY = -2,
    // A time before one that was given earlier: times never go back.
    KINARA_STATUS_TIME_WENT_BACK = -3,
    // An argument is none of those that the header lists, or a time of 2^48 ms or more.
    KINARA_STATUS_BAD_ARGUMENT = -4,
    // The channel is not in the registry.
    KINARA_STATUS_UNKNOWN_CHANNEL = -5,
    // The channel has a sensor already.
    KINARA_STATUS_TAKEN = -6,
    // `KINARA_MAX_SENSORS` are registered.
    KINARA_STATUS_FULL = -7,
    // Not as many values as a sample of the channel has.
    KINARA_STATUS_WRONG_COUNT = -8,
    // The memory or the buffer has fewer bytes than the header says it needs.
    KINARA_STATUS_TOO_SMALL = -9,
    // The flash callbacks failed, or the flash has too few pages.
    KINARA_STATUS_STORAGE = -10,
    // A request is longer than `KINARA_MAX_REQUEST` bytes.
    KINARA_STATUS_OVERFLOW = -11,
    // No room for one more reply: send what is outgoing with `kinara_step`, then call again.
    KINARA_STATUS_BUSY = -12,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kinara_status kinara_status;
#else
typedef int32_t kinara_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A characteristic of the Kinara service.
enum kinara_characteristic
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Notify: frames as they close.
    KINARA_CHARACTERISTIC_STREAM = 0,
    // Notify: stored frames.
    KINARA_CHARACTERISTIC_BACKLOG = 1,
    // Write and indicate: requests and replies.
    KINARA_CHARACTERISTIC_CONTROL = 2,
    // Read and notify.
    KINARA_CHARACTERISTIC_STATUS = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kinara_characteristic kinara_characteristic;
#else
typedef uint32_t kinara_characteristic;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a gateway asks of the device. (Enumerations have a width of their own here: C compilers differ about theirs.)
enum kinara_asked_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Show a person which device this is.
    KINARA_ASKED_KIND_IDENTIFY = 0,
    // Send what is outgoing (with `kinara_step`), then restart.
    KINARA_ASKED_KIND_RESET = 1,
    // Let another gateway pair by `secret` for `lives_s` seconds; then `kinara_bond_reply`.
    KINARA_ASKED_KIND_ADMIT = 2,
    // Forget the bond with the gateway of the identity address `bond`; then `kinara_bond_reply`.
    KINARA_ASKED_KIND_REVOKE = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kinara_asked_kind kinara_asked_kind;
#else
typedef uint32_t kinara_asked_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What the sternal rule says of the last minute.
enum kinara_verdict
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Too little skin conductance: fewer than 48 of 60 seconds, or a hole of more than 5.
    KINARA_VERDICT_NOT_ENOUGH_SIGNAL = 0,
    // The wearer moves: 2,020 activity counts a minute or more.
    KINARA_VERDICT_MOTION = 1,
    // No contact, or an artefact.
    KINARA_VERDICT_NO_CONTACT = 2,
    // No hot flash.
    KINARA_VERDICT_QUIET = 3,
    // Skin conductance rose by 2 µS or more within 30 s.
    KINARA_VERDICT_HOT_FLASH = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kinara_verdict kinara_verdict;
#else
typedef uint32_t kinara_verdict;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why the device starts.
enum kinara_reset_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint8_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Power was applied.
    KINARA_RESET_REASON_POWER_ON = 0,
    // A command or an update.
    KINARA_RESET_REASON_REQUESTED = 1,
    // The watchdog bit.
    KINARA_RESET_REASON_WATCHDOG = 2,
    // The supply sagged.
    KINARA_RESET_REASON_BROWN_OUT = 3,
    // The program failed.
    KINARA_RESET_REASON_FAULT = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kinara_reset_reason kinara_reset_reason;
#else
typedef uint8_t kinara_reset_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A device. Only pointers to it are passed around.
typedef struct kinara_t kinara_t;

// Flash: pages of 4096 bytes. An erased byte reads 0xff, a write clears bits, a page is erased as a whole.
//
// The callbacks return 0 when it is done. A write is of whole 32-bit words at a word's address, and on return it has to
// survive a loss of power. Addresses count from 0.
typedef struct {
    // Given to each callback.
    void *context;
    // How many pages there are: at least `KINARA_MIN_FLASH_PAGES`.
    uint32_t pages;
    // Reads `length` bytes from any address.
    int32_t (*read)(void*, uint32_t address, uint8_t *into, uint32_t length);
    // Writes `length` bytes.
    int32_t (*write)(void*, uint32_t address, const uint8_t *bytes, uint32_t length);
    // Erases one page.
    int32_t (*erase)(void*, uint32_t page);
    // A key stream over bytes that go to flash or come from it, by a key of this device and a nonce of 12 bytes that
    // is never given for two contents (AES-128 in counter mode, say). May be null where nobody can read the chip.
    void (*encipher)(void*, const uint8_t *nonce, uint8_t *bytes, uint32_t length);
} kinara_flash;

// A request of the gateway; what it has beside its kind is zero where it is not of that kind.
typedef struct {
    // What.
    kinara_asked_kind kind;
    // The request, for `kinara_bond_reply`.
    uint16_t request;
    // For how long an introduction lives, seconds.
    uint32_t lives_s;
    // An introduction's secret.
    uint8_t secret[16];
    // An identity address, most significant byte first.
    uint8_t bond[6];
} kinara_asked;

// The Bluetooth stack, as far as Kinara needs it.
typedef struct {
    // Given to each callback.
    void *context;
    // Sends bytes on a characteristic: a notification, or an indication for control. 0: taken; anything else: not
    // now, and they come again with the next step.
    int32_t (*send)(void*, kinara_characteristic characteristic, const uint8_t *bytes, uint32_t length);
    // The gateway asks for something that is the device's to do. May be null: then nothing is identified, and what
    // is about bonds is refused.
    void (*ask)(void*, const kinara_asked *asked);
} kinara_transport;

// What a device tells of itself when it starts.
typedef struct {
    // Its 64-bit factory id: no two devices have the same.
    uint64_t factory_id;
    // Its clock now: milliseconds since it started.
    uint64_t now_ms;
    // Two random numbers.
    uint32_t entropy[2];
    // Its firmware's version: major, minor, patch.
    uint8_t firmware[3];
    // Why it starts: a `kinara_reset_reason`.
    uint8_t reset_reason;
    // Its flash.
    kinara_flash flash;
    // Its radio.
    kinara_transport transport;
} kinara_config;

// What `kinara_predict` tells.
typedef struct {
    // When the rise began, for a hot flash.
    uint64_t onset_ms;
    // How much it is, 0.001 µS.
    uint32_t rise_nanosiemens;
    // What it is.
    kinara_verdict verdict;
    // Whether it is the first word on this hot flash; others follow until it is over, and are the same one.
    bool new_onset;
} kinara_prediction;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Starts a device in `memory` (`KINARA_MEMORY_BYTES` or more, aligned to `KINARA_MEMORY_ALIGN`, the device's for as long
// as the handle is used) and recovers what its flash holds. Takes about 48 KiB of stack, once.
//
// `KINARA_STATUS_NULL`, `_TOO_SMALL` (memory), `_BAD_ARGUMENT` (reset reason), `_STORAGE`.
//
// # Safety
// The pointers are null or point to what they say; `memory` is nobody else's.
kinara_status kinara_init(void *memory,
                          size_t memory_bytes,
                          const kinara_config *config,
                          kinara_t **handle);

// Registers a sensor for a channel (`KINARA_HEART_RATE`…); `sensor` gets its number.
//
// `KINARA_STATUS_NULL`, `_NOT_READY`, `_UNKNOWN_CHANNEL`, `_TAKEN`, `_FULL`.
//
// # Safety
// The pointers are null, or the handle's and the caller's.
kinara_status kinara_sensor_register(kinara_t *handle, uint16_t channel, uint32_t *sensor);

// Takes a reading: `count` values (3 for acceleration, else 1) that were measured at `ticks_ms`, which no later
// reading may precede. It is in flash within a minute (a second while the gateway watches), or at the end of its frame.
// A value outside of what is physically possible is taken as it is; the cloud marks it.
//
// `KINARA_STATUS_NULL`, `_NOT_READY`, `_BAD_ARGUMENT` (no such sensor), `_WRONG_COUNT`, `_TIME_WENT_BACK`, `_STORAGE`.
//
// # Safety
// The pointers are null, or the handle's and `count` values'.
kinara_status kinara_reading_push(kinara_t *handle,
                                  uint32_t sensor,
                                  uint64_t ticks_ms,
                                  const int32_t *values,
                                  size_t count);

// Somebody put the device on, or took it off. `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_worn(kinara_t *handle,
                          uint64_t now_ms,
                          bool worn);

// Does what is due and sends what the radio takes: call it some times a second, and when the radio has room again.
// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_step(kinara_t *handle,
                          uint64_t now_ms);

// Judges the last minute of skin conductance and activity by the sternal rule (a rise of 2 µS within 30 s; no second
// onset within 20 minutes). For an electrode on the sternum only; it is no diagnosis.
// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`.
//
// # Safety
// The pointers are null, or the handle's and the caller's.
kinara_status kinara_predict(kinara_t *handle,
                             uint64_t now_ms,
                             kinara_prediction *prediction);

// A bonded gateway has a link that is encrypted and authenticated. `KINARA_STATUS_NULL`, `_NOT_READY`.
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_link_up(kinara_t *handle);

// That link is gone. `KINARA_STATUS_NULL`, `_NOT_READY`, `_STORAGE`.
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_link_down(kinara_t *handle);

// The gateway switched notifications or indications of a characteristic (a `kinara_characteristic`).
// `KINARA_STATUS_NULL`, `_NOT_READY` (also without a link), `_BAD_ARGUMENT`.
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_subscribe(kinara_t *handle, uint32_t characteristic, bool enabled);

// The gateway wrote to the control characteristic. `KINARA_STATUS_NULL`, `_NOT_READY` (also without a link),
// `_TIME_WENT_BACK`, `_OVERFLOW`, `_BUSY`.
//
// # Safety
// The pointers are null, or the handle's and `length` bytes'.
kinara_status kinara_request(kinara_t *handle, uint64_t now_ms, const uint8_t *bytes, size_t length);

// What the status characteristic says when it is read, into `KINARA_STATUS_BYTES` of `value`.
// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
//
// # Safety
// The pointers are null, or the handle's and the caller's.
kinara_status kinara_status_value(kinara_t *handle, uint64_t now_ms, uint8_t *value);

// How a request about bonds ended that came by the `ask` callback. `KINARA_STATUS_NULL`, `_NOT_READY` (also without a
// link).
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_bond_reply(kinara_t *handle,
                                uint16_t request,
                                bool done);

// Closes the open frames into flash and makes everything known survive: the device is about to be switched off. The
// handle is of no use after it. `KINARA_STATUS_NULL`, `_NOT_READY`, `_STORAGE` (the handle stays).
//
// # Safety
// The pointer is null or a handle.
kinara_status kinara_shut_down(kinara_t *handle);

// The passkey of a device without a display in its pairing window: of the 16 characters on its label and the nonce
// that it advertises. `KINARA_STATUS_NULL`, `_BAD_ARGUMENT` (not a label's characters; a nonce of other than 8 bytes).
//
// # Safety
// The pointers are null, or point to `label_length` and `nonce_length` bytes and a number.
kinara_status kinara_label_passkey(const uint8_t *label,
                                   size_t label_length,
                                   const uint8_t *nonce,
                                   size_t nonce_length,
                                   uint32_t *passkey);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KINARA_H */
