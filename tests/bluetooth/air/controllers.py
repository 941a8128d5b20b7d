"""Controllers and the air between them: Bumble's, with what real ones do and these leave out.

Written for Bumble 0.0.236. What is mended says why; each was met with a real kernel or a real wearable at the other
end. The promise of this module: who is out of range of whom hears nothing of them, and a link that is cut is
told to both ends."""

import asyncio
import time
import zlib

from bumble import hci, ll
from bumble.controller import Controller, LegacyAdvertiser
from bumble.link import LocalLink

SUCCESS = hci.HCI_ErrorCode.SUCCESS
TIMEOUT = hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR
NOT_ESTABLISHED = hci.HCI_ErrorCode.CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR
NO_MORE_LINKS = hci.HCI_ErrorCode.CONNECTION_LIMIT_EXCEEDED_ERROR
# The attribute protocol: its channel, a notification, and the request that subscribes.
ATTRIBUTES, NOTIFICATION, WRITE = b"\4\0", 0x1B, 0x12
# What is heard where nothing else was said, dBm.
USUAL_RSSI = -55
# What every controller sends with, dBm.
USUAL_POWER = 4
# A controller that filters duplicates has a small memory: the same is reported again after so long, seconds.
DUPLICATE_S = 0.5
# 251 bytes are what data length extension allows; lists as long as a busy box needs.
Controller.le_acl_data_packet_length = 251
Controller.supported_max_tx_octets = Controller.supported_max_rx_octets = 251
Controller.filter_accept_list_size = Controller.resolving_list_size = 64


def status(code):
    return hci.HCI_StatusReturnParameters(code)


class Air(LocalLink):
    """Who hears whom, and how well."""

    def __init__(self, tell):
        super().__init__()
        self.tell = tell
        self.strength = {}
        self.notified = {}

    def rssi(self, one, other):
        """dBm between two, None out of range. Two boxes, or two wearables, do not care for each other."""
        if isinstance(one, BoxController) == isinstance(other, BoxController):
            return None
        return self.strength.get(frozenset((one.name, other.name)), USUAL_RSSI)

    def set_range(self, one, other, rssi):
        self.strength[frozenset((one.name, other.name))] = rssi
        if rssi is None:
            self.cut(one, other)

    def cut(self, one, other=None, reason=TIMEOUT):
        """Ends the links of one (with other, or all), as a supervision timeout does: both ends are told."""
        for connection in list(one.le_connections.values()):
            peer = self.peer_of(connection)
            if other is not None and peer is not other:
                continue
            theirs = peer and peer.le_connections.get(connection.self_address)
            if theirs:
                peer.on_le_disconnected(theirs, reason)
            one.on_le_disconnected(connection, reason)

    def peer_of(self, connection):
        for controller in self.controllers:
            theirs = controller.le_connections.get(connection.self_address)
            if theirs and theirs.self_address == connection.peer_address:
                return controller
        return None

    def send_advertising_pdu(self, sender, packet):
        if sender not in self.controllers:
            return
        loop = asyncio.get_running_loop()
        if isinstance(packet, ll.ConnectInd):
            for controller in self.controllers:
                if (
                    self.rssi(sender, controller) is not None
                    and controller.advertises_as(packet.advertiser_address)
                    and controller.listens_to(packet.initiator_address)
                ):
                    controller.on_le_connect_ind(packet)
                    return
            # Nobody was there (any more). The sender has told its host of a link: that link now fails.
            loop.call_soon(sender.not_established, packet.advertiser_address)
            return
        response = sender.le_legacy_advertiser.scan_response_data
        for controller in self.controllers:
            rssi = self.rssi(sender, controller)
            if rssi is not None and isinstance(controller, BoxController):
                loop.call_soon(controller.hear, packet, response, rssi)

    def send_acl_data(self, sender, destination, transport, data):
        # Bumble takes the sender's random address for its own, whichever it connected with.
        connection = sender.le_connections.get(destination)
        peer = connection and self.peer_of(connection)
        if peer:
            self.watch(sender, peer, data)
            asyncio.get_running_loop().call_soon(peer.on_link_acl_data, connection.self_address, transport, data)

    def watch(self, sender, receiver, data):
        """Bumble's controllers encrypt nothing: what is said on the attribute channel can be counted from outside."""
        if len(data) < 7 or data[2:4] != ATTRIBUTES:
            return
        if data[4] == NOTIFICATION:
            self.notified.setdefault(sender.name, []).append(
                (time.monotonic(), int.from_bytes(data[5:7], "little"), zlib.crc32(data[7:]))
            )
        elif data[4] == WRITE and bytes(data[7:]) in (b"\1\0", b"\2\0"):
            self.tell(event="subscribed", device=receiver.name, peer=sender.name, handle=int.from_bytes(data[5:7], "little"))

    def send_ll_control_pdu(self, sender_address, receiver_address, packet):
        # The peer may have gone meanwhile: then nobody hears it.
        for controller in self.controllers:
            theirs = controller.le_connections.get(sender_address)
            if theirs and theirs.self_address == receiver_address:
                asyncio.get_running_loop().call_soon(controller.on_ll_control_pdu, sender_address, packet)
                return


class BedController(Controller):
    """What both ends have in common."""

    def __init__(self, name, link, **more):
        super().__init__(name, link=link, **more)
        self.on_air = True
        self.accept = set()

    def advertises_as(self, address):
        return self.le_legacy_advertiser.enabled and self.le_legacy_advertiser.address == address

    def listens_to(self, central):
        """The advertising filter policies 2 and 3 keep connections to the accept list, which Bumble does not hold."""
        return self.le_legacy_advertiser.advertising_filter_policy < 2 or central in self.accept

    def on_le_disconnected(self, connection, reason):
        if self.le_connections.get(connection.peer_address) is connection:
            super().on_le_disconnected(connection, reason)
            self.link.tell(event="link", device=self.name, peer=str(connection.peer_address), up=False, reason=int(reason))

    def on_ll_control_pdu(self, sender_address, packet):
        # Between sending and hearing a link may end.
        if sender_address in self.le_connections:
            super().on_ll_control_pdu(sender_address, packet)

    def on_hci_reset_command(self, command):
        self.link.cut(self)
        self.forget()
        return super().on_hci_reset_command(command)

    def forget(self):
        """As after power was cut."""
        self.le_legacy_advertiser.stop()
        self.le_scan_enable = False
        self.pending_le_connection = None
        self.accept.clear()
        for connection in list(self.le_connections.values()):
            del self.le_connections[connection.peer_address]

    def on_hci_le_clear_filter_accept_list_command(self, _command):
        self.accept.clear()
        return status(SUCCESS)

    def on_hci_le_add_device_to_filter_accept_list_command(self, command):
        self.accept.add(hci.Address(bytes(command.address), command.address_type))
        return status(SUCCESS)

    def on_hci_le_remove_device_from_filter_accept_list_command(self, command):
        self.accept.discard(hci.Address(bytes(command.address), command.address_type))
        return status(SUCCESS)

    def on_hci_read_rssi_command(self, command):
        connection = self.find_le_connection_by_handle(command.handle)
        peer = connection and self.link.peer_of(connection)
        rssi = self.link.rssi(self, peer) if peer else None
        code = SUCCESS if rssi is not None else hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
        return hci.HCI_Read_RSSI_ReturnParameters(status=code, handle=command.handle, rssi=rssi or 127)

    def on_hci_read_transmit_power_level_command(self, command):
        # The kernel asks this after each RSSI. Bumble has no class for it and sends no answer at all, for which the kernel
        # then waits 2 s with everything else.
        answer = bytes([SUCCESS]) + bytes(command.parameters[:2]) + bytes([USUAL_POWER])
        self.send_hci_packet(
            hci.HCI_Command_Complete_Event(
                num_hci_command_packets=1,
                command_opcode=command.op_code,
                return_parameters=hci.HCI_GenericReturnParameters(data=answer),
            )
        )


class BoxController(BedController):
    """The controller of a gateway's machine: BlueZ is its host."""

    def __init__(self, name, link, address):
        super().__init__(name, link, public_address=address)
        # It claims LL Privacy, but reports connections by the plain event, for whose other form the kernel then
        # waits 20 s; and extended advertising, whose reports are not all there.
        self.le_features &= ~(
            hci.LeFeatureMask.LL_PRIVACY
            | hci.LeFeatureMask.LE_EXTENDED_ADVERTISING
            | hci.LeFeatureMask.LE_PERIODIC_ADVERTISING
        )
        self.random_address = self.public_address
        self.slots = 16
        self.refused = 0
        self.reported = {}

    def forget(self):
        super().forget()
        self.reported.clear()

    def hear(self, packet, response, rssi):
        """An advertisement came by, and what a scan request would be answered."""
        if not self.on_air:
            return
        address = packet.advertiser_address
        if self.le_scan_enable and self.wanted(address, bytes(packet.data), bytes(response)):
            kinds = hci.HCI_LE_Advertising_Report_Event.EventType
            parts = [(kinds.ADV_IND, packet.data)]
            # Only an active scanner asks.
            if self.le_scan_type == 1:
                parts.append((kinds.SCAN_RSP, response))
            for kind, data in parts:
                report = hci.HCI_LE_Advertising_Report_Event.Report(
                    event_type=kind, address_type=address.address_type, address=address, data=bytes(data), rssi=rssi
                )
                self.send_hci_packet(hci.HCI_LE_Advertising_Report_Event([report]))
        pending = self.pending_le_connection
        if pending and self.connects_to(pending, address):
            self.create_le_connection(address)

    def connects_to(self, pending, address):
        if pending.initiator_filter_policy == 1:
            if address not in self.accept:
                return False
            # Bumble looks at the address of the command only.
            pending.peer_address = address
            return True
        return pending.peer_address == address

    def wanted(self, address, data, response):
        if self.le_scanning_filter_policy & 1 and address not in self.accept:
            return False
        if self.filter_duplicates:
            now = time.monotonic()
            key = (bytes(address), data, response)
            if now - self.reported.get(key, 0) < DUPLICATE_S:
                return False
            if len(self.reported) > 256:
                self.reported.clear()
            self.reported[key] = now
        return True

    def on_hci_le_set_scan_enable_command(self, command):
        self.reported.clear()
        return super().on_hci_le_set_scan_enable_command(command)

    def on_hci_le_create_connection_command(self, command):
        if len(self.le_connections) >= self.slots:
            self.refused += 1
            self._send_hci_command_status(NO_MORE_LINKS, command.op_code)
            return
        super().on_hci_le_create_connection_command(command)

    def on_hci_le_create_connection_cancel_command(self, _command):
        # A cancelled attempt ends with its event; without it the kernel waits for good.
        pending, self.pending_le_connection = self.pending_le_connection, None
        if pending is None:
            return status(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        asyncio.get_running_loop().call_soon(
            self.failed, pending, hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
        )
        return status(SUCCESS)

    def failed(self, pending, code):
        self.send_hci_packet(
            hci.HCI_LE_Connection_Complete_Event(
                status=code,
                connection_handle=0,
                role=hci.Role.CENTRAL,
                peer_address_type=pending.peer_address.address_type,
                peer_address=pending.peer_address,
                connection_interval=0,
                peripheral_latency=0,
                supervision_timeout=0,
                central_clock_accuracy=0,
            )
        )

    def not_established(self, address):
        if connection := self.le_connections.get(address):
            self.on_le_disconnected(connection, NOT_ESTABLISHED)


class PrivateAdvertiser(LegacyAdvertiser):
    """Advertises as the controller's private address where the host asked for one (own address types 2 and 3)."""

    @property
    def address(self):
        if self.own_address_type in (2, 3) and self.controller.private_address:
            return self.controller.private_address
        return LegacyAdvertiser.address.fget(self)


class WearableController(BedController):
    """The controller of a wearable. It does the peripheral's half of LL Privacy, which Bumble claims and leaves out:
    a private address from the local key of the resolving list, drawn anew after the host's timeout."""

    def __init__(self, name, link, **more):
        super().__init__(name, link, **more)
        self.le_legacy_advertiser = PrivateAdvertiser(self)
        self.private_address = None
        self.key = None
        self.rotation = None
        self.asked = None

    def forget(self):
        super().forget()
        self.private_address = self.key = None
        if self.rotation:
            self.rotation.cancel()

    def on_hci_le_add_device_to_resolving_list_command(self, command):
        if any(command.local_irk):
            key = bytes(command.local_irk)
            if key != self.key:
                self.key = key
                self.rotate()
        return status(SUCCESS)

    def on_hci_le_remove_device_from_resolving_list_command(self, command):
        # Bumble does not know this command for one that is answered by its completion: its host would wait for good.
        self.send_hci_packet(
            hci.HCI_Command_Complete_Event(
                num_hci_command_packets=1, command_opcode=command.op_code, return_parameters=status(SUCCESS)
            )
        )

    def on_hci_le_set_resolvable_private_address_timeout_command(self, command):
        done = super().on_hci_le_set_resolvable_private_address_timeout_command(command)
        if self.key:
            self.rotate()
        return done

    def rotate(self):
        """A new private address, from now on and for the timeout."""
        if not self.key:
            return
        self.private_address = hci.Address.generate_private_address(self.key)
        self.link.tell(event="address", device=self.name, address=str(self.private_address))
        if self.rotation:
            self.rotation.cancel()
        self.rotation = asyncio.get_running_loop().call_later(self.le_rpa_timeout or 900, self.rotate)

    def on_le_connect_ind(self, packet):
        self.asked = packet
        super().on_le_connect_ind(packet)
        box = next((c for c in self.link.controllers if packet.initiator_address == c.public_address), None)
        self.link.tell(
            event="link",
            device=self.name,
            peer=box.name if box else str(packet.initiator_address),
            address=str(packet.advertiser_address),
            up=True,
        )

    def send_hci_packet(self, packet):
        if isinstance(packet, hci.HCI_LE_Connection_Complete_Event) and packet.status == SUCCESS and self.asked:
            # Bumble tells constants, of a supervision timeout of 100 ms.
            packet.connection_interval = self.asked.interval
            packet.peripheral_latency = self.asked.latency
            packet.supervision_timeout = self.asked.timeout
            # Whoever advertised privately is told as which address it was met.
            if self.le_legacy_advertiser.own_address_type in (2, 3):
                packet = hci.HCI_LE_Enhanced_Connection_Complete_Event(
                    status=packet.status,
                    connection_handle=packet.connection_handle,
                    role=packet.role,
                    peer_address_type=packet.peer_address_type,
                    peer_address=packet.peer_address,
                    local_resolvable_private_address=self.asked.advertiser_address,
                    peer_resolvable_private_address=hci.Address(bytes(6), hci.Address.RANDOM_DEVICE_ADDRESS),
                    connection_interval=packet.connection_interval,
                    peripheral_latency=packet.peripheral_latency,
                    supervision_timeout=packet.supervision_timeout,
                    central_clock_accuracy=packet.central_clock_accuracy,
                )
            else:
                packet = hci.HCI_LE_Connection_Complete_Event(**vars_of(packet))
        super().send_hci_packet(packet)


def vars_of(event):
    """The fields of a connection event: an event keeps the bytes that it was made into first."""
    names = (
        "status connection_handle role peer_address_type peer_address connection_interval peripheral_latency "
        "supervision_timeout central_clock_accuracy"
    )
    return {name: getattr(event, name) for name in names.split()}
