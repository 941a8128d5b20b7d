/* A device of another maker, in a few minutes of its own time: it measures, judges, restarts, and hands everything to a
 * gateway. Flash and radio are arrays here; a real device has drivers in their place. What is wrong is said, and the
 * program then ends with 1. It is the same on a PC, a Cortex-M4F and a RISC-V core. */

#include "kinara.h"

/* What a platform brings: platform_host.c, or platform_bare.c. */
void say(const char *text);
void say_number(const char *text, uint64_t number);

enum { PAGE = 4096, PAGES = 16, MINUTES = 5 };

static int wrong;

static void must(bool so, const char *what)
{
    if (!so) {
        say("WRONG: ");
        say(what);
        say("\n");
        wrong = 1;
    }
}

/* --- flash --------------------------------------------------------------------------------------------------------- */

static uint8_t flash[PAGE * PAGES];

static int32_t flash_read(void *context, uint32_t address, uint8_t *into, uint32_t length)
{
    (void)context;
    for (uint32_t i = 0; i < length; i++)
        into[i] = flash[address + i];
    return 0;
}

static int32_t flash_write(void *context, uint32_t address, const uint8_t *bytes, uint32_t length)
{
    (void)context;
    for (uint32_t i = 0; i < length; i++)
        flash[address + i] &= bytes[i];
    return 0;
}

static int32_t flash_erase(void *context, uint32_t page)
{
    (void)context;
    for (uint32_t i = 0; i < PAGE; i++)
        flash[page * PAGE + i] = 0xff;
    return 0;
}

/* A real device has AES-128 in counter mode here. */
static void flash_encipher(void *context, const uint8_t *nonce, uint8_t *bytes, uint32_t length)
{
    (void)context;
    for (uint32_t i = 0; i < length; i++)
        bytes[i] ^= (uint8_t)(nonce[i % 12] + 7 * i + 0x5a);
}

/* --- radio: the gateway at its other end --------------------------------------------------------------------------- */

static struct {
    uint8_t last[KINARA_MAX_VALUE]; /* header of the newest frame */
    uint32_t frames, replies, refused, offered, identified;
    uint32_t next_seq;
    uint64_t epoch;
    bool to_acknowledge;
} gateway;

static uint64_t little_endian(const uint8_t *bytes, int count)
{
    uint64_t number = 0;
    while (count-- > 0)
        number = number << 8 | bytes[count];
    return number;
}

static int32_t radio_send(void *context, kinara_characteristic characteristic, const uint8_t *bytes, uint32_t length)
{
    (void)context;
    /* A radio whose buffers are full now and then. */
    if (++gateway.offered % 3 == 0)
        return -1;
    if (characteristic == KINARA_CHARACTERISTIC_CONTROL) {
        gateway.replies++;
        gateway.refused += bytes[2] == 1;
        return 0;
    }
    if (characteristic != KINARA_CHARACTERISTIC_BACKLOG)
        return 0;
    uint64_t epoch = little_endian(bytes + 4, 8);
    uint32_t seq = (uint32_t)little_endian(bytes + 12, 4);
    if (epoch != gateway.epoch) {
        gateway.epoch = epoch;
        gateway.next_seq = 0;
    }
    must(seq == gateway.next_seq, "frames come without a hole");
    gateway.next_seq = seq + 1;
    gateway.frames++;
    gateway.to_acknowledge = true;
    for (uint32_t i = 0; i < length; i++)
        gateway.last[i] = bytes[i];
    return 0;
}

static void radio_ask(void *context, const kinara_asked *asked)
{
    (void)context;
    gateway.identified += asked->kind == KINARA_ASKED_KIND_IDENTIFY;
}

/* --- the device ---------------------------------------------------------------------------------------------------- */

_Alignas(KINARA_MEMORY_ALIGN) static uint8_t memory[KINARA_MEMORY_BYTES];

static kinara_config config(void)
{
    kinara_config config = {
        .factory_id = 0x4b00000000000001u,
        .entropy = { 0x12345678u, 0x9abcdef0u },
        .firmware = { 1, 2, 3 },
        .reset_reason = KINARA_RESET_REASON_POWER_ON,
        .flash = { 0, PAGES, flash_read, flash_write, flash_erase, flash_encipher },
        .transport = { 0, radio_send, radio_ask },
    };
    return config;
}

/* 3 µS, and between the 150th and the 165th second a rise by 2.5 µS. */
static int32_t conductance(uint64_t ms)
{
    if (ms < 150000)
        return 3000;
    return ms < 165000 ? 3000 + (int32_t)((ms - 150000) / 6) : 5500;
}

static void measure(kinara_t *kinara)
{
    uint32_t eda, heart_rate, onsets = 0, readings = 0;
    must(kinara_sensor_register(kinara, KINARA_EDA, &eda) == KINARA_STATUS_OK, "EDA is registered");
    must(kinara_sensor_register(kinara, KINARA_HEART_RATE, &heart_rate) == KINARA_STATUS_OK, "heart rate is registered");
    must(kinara_worn(kinara, 0, true) == KINARA_STATUS_OK, "it is worn");
    for (uint64_t ms = 0; ms < MINUTES * 60000u; ms += 250) {
        int32_t nanosiemens = conductance(ms), tenths = 723;
        must(kinara_reading_push(kinara, eda, ms, &nanosiemens, 1) == KINARA_STATUS_OK, "a reading is taken");
        readings++;
        if (ms % 1000 == 0) {
            kinara_prediction said;
            must(kinara_reading_push(kinara, heart_rate, ms, &tenths, 1) == KINARA_STATUS_OK, "a reading is taken");
            readings++;
            must(kinara_predict(kinara, ms, &said) == KINARA_STATUS_OK, "it judges");
            if (said.verdict == KINARA_VERDICT_HOT_FLASH && said.new_onset) {
                onsets++;
                must(said.onset_ms >= 149000 && said.onset_ms <= 151000, "the onset is where the rise began");
            }
        }
        must(kinara_step(kinara, ms) == KINARA_STATUS_OK, "a step is done");
    }
    must(onsets == 1, "one hot flash is seen, once");
    say_number("readings ", readings);
}

static void acknowledge(kinara_t *kinara, uint64_t now, uint16_t id)
{
    /* id, operation 4, epoch and seq of the newest frame. */
    uint8_t request[15] = { (uint8_t)id, (uint8_t)(id >> 8), 4 };
    for (int i = 0; i < 12; i++)
        request[3 + i] = gateway.last[4 + i];
    must(kinara_request(kinara, now, request, sizeof request) == KINARA_STATUS_OK, "an acknowledgement is taken");
}

static void hand_over(kinara_t *kinara, uint64_t now)
{
    const uint8_t start[] = { 1, 0, 6, 8 }, identify[] = { 2, 0, 9 };
    uint8_t status[KINARA_STATUS_BYTES];
    must(kinara_link_up(kinara) == KINARA_STATUS_OK, "a link begins");
    must(kinara_subscribe(kinara, KINARA_CHARACTERISTIC_BACKLOG, true) == KINARA_STATUS_OK, "backlog is switched on");
    must(kinara_request(kinara, now, start, sizeof start) == KINARA_STATUS_OK, "the backlog is asked for");
    must(kinara_request(kinara, now, identify, sizeof identify) == KINARA_STATUS_OK, "it is asked to show itself");
    for (uint16_t turn = 3; turn < 2000; turn++) {
        must(kinara_step(kinara, now) == KINARA_STATUS_OK, "a step is done");
        if (gateway.to_acknowledge) {
            gateway.to_acknowledge = false;
            acknowledge(kinara, now, turn);
        }
    }
    must(kinara_status_value(kinara, now, status) == KINARA_STATUS_OK, "it tells its status");
    must(little_endian(status + KINARA_STATUS_BYTES - 4, 4) == 0, "all frames are acknowledged");
    must(gateway.refused == 0 && gateway.replies > 2, "no request was refused");
    must(gateway.identified == 1, "a person was shown which one it is");
    must(kinara_link_down(kinara) == KINARA_STATUS_OK, "the link ends");
}

/* Each kind of bad call has its code, and changes nothing. */
static void bad_calls(kinara_t *kinara, uint64_t now)
{
    static _Alignas(KINARA_MEMORY_ALIGN) uint8_t blank[KINARA_MEMORY_BYTES];
    static const uint16_t channels[] = { 2, 3, 4, 6, 7, 8, 9, 64, 65 };
    kinara_t *other, *never = (kinara_t *)blank;
    kinara_config good = config(), bad = config();
    kinara_prediction said;
    uint32_t sensor, acceleration = 0;
    int32_t values[4] = { 0 };
    const uint8_t request[KINARA_MAX_REQUEST + 1] = { 0 };
    const char label[] = "ABCD-EFGH-IJKL-MNOP";
    const uint8_t nonce[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    uint32_t passkey = 1000000;

    must(kinara_init(0, sizeof blank, &good, &other) == KINARA_STATUS_NULL, "memory is asked for");
    must(kinara_init(blank + 1, sizeof blank - 1, &good, &other) == KINARA_STATUS_NULL, "aligned memory is asked for");
    must(kinara_init(blank, 100, &good, &other) == KINARA_STATUS_TOO_SMALL, "enough memory is asked for");
    must(kinara_init(blank, sizeof blank, 0, &other) == KINARA_STATUS_NULL, "a configuration is asked for");
    bad.flash.erase = 0;
    must(kinara_init(blank, sizeof blank, &bad, &other) == KINARA_STATUS_NULL, "all callbacks are asked for");
    bad = config();
    bad.reset_reason = 99;
    must(kinara_init(blank, sizeof blank, &bad, &other) == KINARA_STATUS_BAD_ARGUMENT, "a reset reason is asked for");
    bad = config();
    bad.flash.pages = KINARA_MIN_FLASH_PAGES - 1;
    must(kinara_init(blank, sizeof blank, &bad, &other) == KINARA_STATUS_STORAGE, "enough flash is asked for");
    must(kinara_step(0, now) == KINARA_STATUS_NULL, "null is no handle");
    must(kinara_step(never, now) == KINARA_STATUS_NOT_READY, "before kinara_init nothing works");
    must(kinara_predict(never, now, &said) == KINARA_STATUS_NOT_READY, "before kinara_init nothing works");

    must(kinara_sensor_register(kinara, 999, &sensor) == KINARA_STATUS_UNKNOWN_CHANNEL, "channels are known");
    must(kinara_sensor_register(kinara, KINARA_EDA, &sensor) == KINARA_STATUS_TAKEN, "a channel has one sensor");
    for (unsigned i = 0; i < sizeof channels / sizeof *channels; i++)
        must(kinara_sensor_register(kinara, channels[i], &acceleration) == KINARA_STATUS_OK, "all channels register");
    must(kinara_reading_push(kinara, 77, now, values, 1) == KINARA_STATUS_BAD_ARGUMENT, "sensors are registered");
    must(kinara_reading_push(kinara, acceleration, now, values, 1) == KINARA_STATUS_WRONG_COUNT, "three values are asked for");
    must(kinara_reading_push(kinara, acceleration, now, values, 100000) == KINARA_STATUS_WRONG_COUNT, "not more");
    must(kinara_reading_push(kinara, acceleration, now, 0, 3) == KINARA_STATUS_NULL, "values are asked for");
    must(kinara_reading_push(kinara, acceleration, 1, values, 3) == KINARA_STATUS_TIME_WENT_BACK, "time goes on");
    must(kinara_reading_push(kinara, acceleration, UINT64_MAX, values, 3) == KINARA_STATUS_BAD_ARGUMENT, "time has 48 bits");
    must(kinara_step(kinara, 1) == KINARA_STATUS_TIME_WENT_BACK, "time goes on");
    must(kinara_subscribe(kinara, KINARA_CHARACTERISTIC_STREAM, true) == KINARA_STATUS_NOT_READY, "a link is asked for");
    must(kinara_request(kinara, now, request, 3) == KINARA_STATUS_NOT_READY, "a link is asked for");
    kinara_link_up(kinara);
    must(kinara_subscribe(kinara, 4, true) == KINARA_STATUS_BAD_ARGUMENT, "there are four characteristics");
    must(kinara_request(kinara, now, request, sizeof request) == KINARA_STATUS_OVERFLOW, "requests are short");
    const uint8_t hello[] = { 7, 0, 1 };
    kinara_status last = KINARA_STATUS_OK;
    for (int i = 0; i < 100 && last == KINARA_STATUS_OK; i++)
        last = kinara_request(kinara, now, hello, sizeof hello);
    must(last == KINARA_STATUS_BUSY, "requests wait for room");
    kinara_link_down(kinara);

    must(kinara_label_passkey((const uint8_t *)label, sizeof label - 1, nonce, 8, &passkey) == KINARA_STATUS_OK
             && passkey <= 999999, "a label gives a passkey");
    must(kinara_label_passkey((const uint8_t *)"nonsense", 8, nonce, 8, &passkey) == KINARA_STATUS_BAD_ARGUMENT,
         "a label has sixteen characters");
}

int example(void)
{
    kinara_t *kinara = 0;
    kinara_config first = config();
    for (unsigned i = 0; i < sizeof flash; i++)
        flash[i] = 0xff;
    must(kinara_init(memory, sizeof memory, &first, &kinara) == KINARA_STATUS_OK, "it starts");
    measure(kinara);
    hand_over(kinara, MINUTES * 60000u);
    uint64_t epoch = gateway.epoch;
    bad_calls(kinara, MINUTES * 60000u);

    must(kinara_shut_down(kinara) == KINARA_STATUS_OK, "it is switched off in order");
    must(kinara_step(kinara, MINUTES * 60000u) == KINARA_STATUS_NOT_READY, "after that nothing works");
    must(kinara_init(memory, sizeof memory, &first, &kinara) == KINARA_STATUS_OK, "it starts again");
    gateway.refused = gateway.replies = gateway.identified = 0;
    hand_over(kinara, 1000);
    must(gateway.epoch == epoch + 1, "a start begins an epoch");

    say_number("frames ", gateway.frames);
    say(wrong ? "the example failed\n" : "the example passed\n");
    return wrong;
}
