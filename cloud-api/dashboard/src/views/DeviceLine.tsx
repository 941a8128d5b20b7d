import { memo } from 'react';
import type { Device } from '../api/types';
import { useStore } from '../context';
import { count } from '../format';
import { Ago, Icon } from './parts';

const LOW_BATTERY = 20;
/** A few frames are always under way; more are a backlog. */
const BACKLOG_FRAMES = 10;

/** Signal in words; the number is in the title for who wants it. */
function signal(rssi: number | null): string {
  if (rssi === null) return 'linked';
  if (rssi >= -65) return 'good signal';
  if (rssi >= -80) return 'fair signal';
  return 'weak signal';
}

/** Battery, link and wear of one device, in one line. */
export const DeviceLine = memo(function DeviceLine({ device }: { device: Device }) {
  const gatewayId = device.link?.gatewayId ?? null;
  const gateway = useStore('gateways', (s) => s.gateways.find((g) => g.id === gatewayId)?.name);
  const connected = device.link?.connected ?? false;
  const rssi = device.link?.rssiDbm ?? null;
  const backlog = device.link?.backlogFrames ?? 0;
  const problem = device.link?.problem ?? null;
  return (
    <li className="device-line">
      <a className="device-name" href={`#/device/${encodeURIComponent(device.id)}`} title={device.hardwareId}>
        {device.name}
      </a>
      <Battery percent={device.batteryPercent} deviceId={device.id} />
      <span
        className={connected ? 'link' : 'link off'}
        data-testid="device-link"
        data-device={device.id}
        data-connected={connected}
        title={rssi === null ? undefined : `${rssi} dBm`}
      >
        <Icon name={connected ? 'link' : 'unlink'} />
        {connected ? (
          <>
            {gateway ? `${gateway}, ` : ''}
            {signal(rssi)}
          </>
        ) : (
          <>
            no link
            {device.lastSeenAt !== null && (
              <>
                , seen <Ago at={device.lastSeenAt} />
              </>
            )}
          </>
        )}
      </span>
      {device.worn !== null && (
        <span className={device.worn ? 'worn' : 'worn off'}>
          <Icon name="wrist" />
          {device.worn ? 'worn' : 'not worn'}
        </span>
      )}
      {backlog > BACKLOG_FRAMES && <span className="muted">{count(backlog)} frames still on the device</span>}
      {problem && <span className="device-problem">{problem}</span>}
    </li>
  );
});

function Battery({ percent, deviceId }: { percent: number | null; deviceId: string }) {
  const low = percent !== null && percent < LOW_BATTERY;
  return (
    <span className={low ? 'battery low' : 'battery'} data-testid="device-battery" data-device={deviceId} data-percent={percent ?? undefined}>
      <svg viewBox="0 0 24 12" aria-hidden="true">
        <rect x="0.75" y="0.75" width="19.5" height="10.5" rx="2.5" />
        <path d="M22.500 4v4" />
        {percent !== null && <rect className="fill" x="2.5" y="2.5" width={(16 * Math.max(4, Math.min(100, percent))) / 100} height="7" rx="1.2" />}
      </svg>
      <span className="sr">Battery </span>
      {percent === null ? '—' : `${Math.round(percent)} %`}
      {low && <span className="sr">, low</span>}
    </span>
  );
}
