import { memo, useEffect, useRef } from 'react';
import type { Device, User } from '../api/types';
import { TILE_TYPES } from '../clinic';
import { useApp, useStore } from '../context';
import type { Episode } from '../episodes';
import { sentence } from '../format';
import { DeviceLine } from './DeviceLine';
import { Metric } from './Metric';

export const WearerTile = memo(function WearerTile({ user }: { user: User }) {
  const { clinic, zone } = useApp();
  const item = useRef<HTMLLIElement>(null);
  const devices = useStore(`devices|${user.id}`, (s) => s.devicesOfUser(user.id));
  const isAlert = (e: Episode) => e.userId === user.id && e.acknowledgedAt === null;
  const alert = useStore('events', (s) => s.episodes.find(isAlert));
  const alerts = useStore('events', (s) => s.episodes.filter(isAlert).length);

  useEffect(() => {
    const element = item.current;
    if (!element) return;
    // Only tiles that come into view ask for their last minutes.
    const observer = new IntersectionObserver(
      (entries) => {
        if (!entries.some((e) => e.isIntersecting)) return;
        observer.disconnect();
        clinic.wantHistory(user.id);
      },
      { rootMargin: '200px' },
    );
    observer.observe(element);
    return () => observer.disconnect();
  }, [clinic, user.id]);

  return (
    <li ref={item} className={`card tile${alert ? ' has-alert' : ''}`} data-testid="wearer-tile" data-user={user.id}>
      <div className="tile-head">
        <h2>
          <a href={`#/wearer/${encodeURIComponent(user.id)}`}>{user.displayName}</a>
        </h2>
        {user.externalId && user.externalId !== user.displayName && <span className="muted ext">{user.externalId}</span>}
        {user.provisional && <span className="chip held">provisional</span>}
        {alert && (
          <span className="chip alert" data-testid="tile-alert" data-open={alerts}>
            {sentence(alert.eventType)} {zone.minute(alert.time)}
            {alerts > 1 && `, ${alerts} open`}
          </span>
        )}
      </div>
      <div className="metrics">
        {TILE_TYPES.map((t) => (
          <Metric key={t} userId={user.id} readingType={t} />
        ))}
      </div>
      <Devices devices={devices} />
    </li>
  );
});

const Devices = memo(function Devices({ devices }: { devices: readonly Device[] }) {
  if (devices.length === 0) return <p className="muted no-device">No device assigned</p>;
  return (
    <ul className="device-lines">
      {devices.map((d) => (
        <DeviceLine key={d.id} device={d} />
      ))}
    </ul>
  );
});
