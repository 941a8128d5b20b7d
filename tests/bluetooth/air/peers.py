"""Peers that are wholly Bumble's: a heart-rate sensor of another maker, impostors, and somebody's phone."""

import asyncio
import struct

from bumble import hci
from bumble.att import ATT_Error
from bumble.core import UUID, AdvertisingData
from bumble.device import Device, DeviceConfiguration, Peer as Remote
from bumble.gatt import Characteristic, Service
from bumble.host import Host
from bumble.pairing import PairingConfig, PairingDelegate
from bumble.transport.common import AsyncPipeSink

from controllers import BoxController, WearableController

HEART_RATE, MEASUREMENT = UUID.from_16_bits(0x180D), UUID.from_16_bits(0x2A37)
BATTERY, LEVEL = UUID.from_16_bits(0x180F), UUID.from_16_bits(0x2A19)
# 16-bit values follow the flags: bit 4 says that there are RR intervals, in 1/1024 s.
WITH_RR = 0x10
KINARA_BACKLOG, KINARA_CONTROL = "6B690003-4E61-5261-8B01-7A1C09D54F2E", "6B690004-4E61-5261-8B01-7A1C09D54F2E"


class Delegate(PairingDelegate):
    """Agrees to everything; its display, if it has one, shows this number."""

    def __init__(self, capability, passkey):
        super().__init__(capability)
        self.passkey = passkey

    async def generate_passkey(self):
        return self.passkey

    async def display_number(self, number, digits):
        pass

    async def confirm(self, auto=False):
        return True


class Peer:
    """A device on the air that is no wearable of ours."""

    def __init__(self, air, name, number, advertising, response, pairing):
        self.controller = WearableController(name, air)
        # Bumble's hosts advertise in the extended way where that is claimed; the boxes' controllers do not hear it.
        self.controller.le_features &= ~(
            hci.LeFeatureMask.LE_EXTENDED_ADVERTISING | hci.LeFeatureMask.LE_PERIODIC_ADVERTISING
        )
        address = hci.Address(f"C1:00:00:00:00:{number:02X}", hci.Address.RANDOM_DEVICE_ADDRESS)
        config = DeviceConfiguration(
            name=name,
            address=address,
            advertising_data=advertising,
            advertising_interval_min=100,
            advertising_interval_max=100,
            irk=bytes(16),
        )
        self.response = response
        self.device = Device(config=config, host=Host(self.controller, AsyncPipeSink(self.controller)))
        self.device.pairing_config_factory = lambda _connection: pairing
        self.air, self.name, self.connection = air, name, None
        self.device.on("connection", self.connected)

    async def start(self):
        await self.device.power_on()
        await self.advertise()

    async def advertise(self):
        await self.device.start_advertising(auto_restart=False, scan_response_data=self.response)

    def connected(self, connection):
        self.connection = connection
        connection.on("disconnection", lambda _reason: self.disconnected())
        connection.on("pairing", lambda _keys: self.air.tell(event="paired", device=self.name))
        connection.on("pairing_failure", lambda reason: self.air.tell(event="not_paired", device=self.name, reason=int(reason)))

    def disconnected(self):
        self.connection = None
        asyncio.ensure_future(self.advertise())


class HeartRateSensor(Peer):
    """Sends one measurement a second: the beats count up from 60, so that each can be told from the next."""

    def __init__(self, air, name, number):
        advertising = bytes(
            AdvertisingData(
                [
                    (AdvertisingData.FLAGS, bytes([6])),
                    (AdvertisingData.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS, struct.pack("<H", 0x180D)),
                    (AdvertisingData.COMPLETE_LOCAL_NAME, name.encode()),
                ]
            )
        )
        just_works = PairingConfig(
            sc=True, mitm=False, bonding=True, delegate=Delegate(PairingDelegate.NO_OUTPUT_NO_INPUT, 0)
        )
        super().__init__(air, name, number, advertising, b"", just_works)
        notify, readable = Characteristic.Properties.NOTIFY, Characteristic.READABLE
        self.measurement = Characteristic(MEASUREMENT, notify, readable, b"\0\0")
        level = Characteristic(LEVEL, notify | Characteristic.Properties.READ, readable, bytes([87]))
        self.device.add_services([Service(HEART_RATE, [self.measurement]), Service(BATTERY, [level])])
        self.beat = 60

    async def start(self):
        await super().start()
        asyncio.ensure_future(self.measure())

    async def measure(self):
        while True:
            await asyncio.sleep(1)
            if connection := self.connection:
                value = struct.pack("<BBH", WITH_RR, self.beat, 60 * 1024 // self.beat)
                await self.device.notify_subscriber(connection, self.measurement, value)
                if self.controller.le_connections:
                    self.air.tell(event="measured", device=self.name, beats=self.beat)
                self.beat = 60 + (self.beat - 59) % 120


def impostor(air, name, number, copied, kind, passkey):
    """Says of itself all that a wearable says of itself, but cannot do what a wearable can."""
    if kind == "just_works":
        capability, secure = PairingDelegate.NO_OUTPUT_NO_INPUT, True
    else:
        # The number of a legacy pairing can be found out by whoever takes part in it: being right proves nothing.
        capability, secure = PairingDelegate.DISPLAY_OUTPUT_ONLY, False
    pairing = PairingConfig(sc=secure, mitm=not secure, bonding=True, delegate=Delegate(capability, passkey))
    advertiser = copied.le_legacy_advertiser
    return Peer(air, name, number, bytes(advertiser.advertising_data), bytes(advertiser.scan_response_data), pairing)


class Typing(PairingDelegate):
    """A person types the number that the other side's label gives."""

    def __init__(self, passkey):
        super().__init__(PairingDelegate.KEYBOARD_INPUT_ONLY)
        self.passkey = passkey

    async def get_number(self):
        return self.passkey


class Phone:
    """A central with a stack of its own, that knows the standard services only."""

    # What it reads, by service; Heart Rate and Health Thermometer tell theirs instead.
    READ = {
        "manufacturer": (0x180A, 0x2A29),
        "serial": (0x180A, 0x2A25),
        "firmware": (0x180A, 0x2A26),
        "battery": (0x180F, 0x2A19),
        "location": (0x180D, 0x2A38),
        "temperature_type": (0x1809, 0x2A1D),
    }
    TOLD = {"heart_rate": (0x180D, 0x2A37), "temperature": (0x1809, 0x2A1C)}

    def __init__(self, air, name, number):
        address = f"F0:F1:F2:00:01:{number:02X}"
        self.controller = BoxController(name, air, address)
        config = DeviceConfiguration(name=name, address=hci.Address(address, hci.Address.PUBLIC_DEVICE_ADDRESS))
        self.device = Device(config=config, host=Host(self.controller, AsyncPipeSink(self.controller)))

    async def connect(self, address, patience):
        return await self.device.connect(
            hci.Address(address, hci.Address.RANDOM_DEVICE_ADDRESS), own_address_type=hci.OwnAddressType.PUBLIC, timeout=patience
        )

    async def knock(self, address, patience):
        """Connects, and waits until the link is gone. Why it went."""
        await self.device.power_on()
        gone = asyncio.get_running_loop().create_future()
        # A link that nobody answered may be gone before it is handed over.
        self.device.once("connection", lambda connection: connection.once("disconnection", gone.set_result))
        await self.connect(address, patience)
        return int(await asyncio.wait_for(gone, patience))

    async def collect(self, address, passkey, patience, seconds):
        """Pairs, asks for all that a wearable holds, and takes what comes for so long: `frames`, and `replies`."""
        self.type_when_asked(passkey)
        await self.device.power_on()
        connection = await self.connect(address, patience)
        got = {"frames": [], "replies": []}
        async with Remote(connection) as remote:
            await remote.request_mtu(247)
            await remote.discover_services()
            await remote.discover_characteristics()
            backlog, control = (remote.get_characteristics_by_uuid(UUID(uuid))[0] for uuid in (KINARA_BACKLOG, KINARA_CONTROL))
            await asyncio.wait_for(connection.pair(), patience)
            await control.subscribe(lambda value: got["replies"].append(bytes(value).hex()), prefer_notify=False)
            await backlog.subscribe(lambda value: got["frames"].append(bytes(value).hex()))
            # Who are you? Then the backlog, with as many frames on the way as may be.
            for request in (struct.pack("<HB", 1, 1), struct.pack("<HBB", 2, 6, 100)):
                await control.write_value(request, with_response=True)
            await asyncio.sleep(seconds)
            await connection.disconnect()
        return got

    def type_when_asked(self, passkey):
        self.device.pairing_config_factory = lambda _connection: PairingConfig(
            sc=True, mitm=True, bonding=True, delegate=Typing(passkey)
        )

    async def visit(self, address, passkey, patience):
        """Tries to read, pairs, reads everything, and waits for both measurements. What it got, in hexadecimal."""
        self.type_when_asked(passkey)
        await self.device.power_on()
        connection = await self.connect(address, patience)
        async with Remote(connection) as remote:
            await remote.discover_services()
            await remote.discover_characteristics()

            def find(service, characteristic):
                return remote.get_characteristics_by_uuid(
                    UUID.from_16_bits(characteristic), remote.get_services_by_uuid(UUID.from_16_bits(service))[0]
                )[0]

            got = {"before": {}}
            for name, place in self.READ.items():
                try:
                    got["before"][name] = bytes(await find(*place).read_value()).hex()
                except ATT_Error as error:
                    got["before"][name] = f"error {int(error.error_code)}"
            await asyncio.wait_for(connection.pair(), patience)
            for name, place in self.READ.items():
                got[name] = bytes(await find(*place).read_value()).hex()
            for name, place in self.TOLD.items():
                told = asyncio.get_running_loop().create_future()
                await find(*place).subscribe(lambda value, told=told: told.done() or told.set_result(value))
                got[name] = bytes(await asyncio.wait_for(told, patience)).hex()
            await connection.disconnect()
            return got
