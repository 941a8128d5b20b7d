import { useState } from 'react';
import type { Bond, Bonds, Decision, Device } from '../api/types';
import { useApp, useStore } from '../context';
import { sentence } from '../format';
import { called } from '../names';
import { DeviceLine } from './DeviceLine';
import { Ago, Empty, ErrorBox, Icon } from './parts';
import { useLoaded, useTask } from './useTask';

const HOW: Record<string, string> = {
  label: 'paired by its label',
  display: 'paired by its display',
  introduction: 'introduced',
  just_works: 'paired without a code',
};

/** One device: who wears it, and which gateways know it. */
export default function DeviceView({ deviceId }: { deviceId: string }) {
  const device = useStore('devices', (s) => s.devices.find((d) => d.id === deviceId));
  const loaded = useStore('users', (s) => s.loaded);
  const wearer = useStore('users', (s) => s.users.find((u) => u.id === device?.userId));
  return (
    <div className="detail">
      <a className="back" href={wearer ? `#/wearer/${encodeURIComponent(wearer.id)}` : '#/'}>
        <Icon name="back" />
        {called(wearer, 'All wearers')}
      </a>
      {!device ? (
        loaded ? <Empty title="No such device">It may belong to another clinic.</Empty> : <p className="loading">Loading…</p>
      ) : (
        <>
          <div className="detail-head card">
            <div>
              <h1>{device.name}</h1>
              <p className="muted">
                {device.hardwareId}
                {device.firmwareVersion && ` · firmware ${device.firmwareVersion}`}
                {!wearer && ' · nobody wears it now'}
              </p>
              <ul className="device-lines">
                <DeviceLine device={device} />
              </ul>
            </div>
          </div>
          <KnownBy device={device} />
        </>
      )}
    </div>
  );
}

function KnownBy({ device }: { device: Device }) {
  const { clinic, session } = useApp();
  const may = session.member.role !== 'viewer';
  const { value, error, reload } = useLoaded(async (): Promise<{ known: Bonds; decisions: Decision[] }> => {
    const [known, decisions] = await Promise.all([
      clinic.client.bonds(device.id),
      may ? clinic.client.decisions(device.id) : Promise.resolve([]),
    ]);
    return { known, decisions };
  });
  if (error && !value) return <ErrorBox error={error} onRetry={reload} />;
  if (!value) return <p className="loading">Loading…</p>;
  return (
    <div className="panels">
      <section className="card panel" aria-labelledby="bonds-title" data-testid="bonds">
        <h2 id="bonds-title">Gateways that know it</h2>
        {value.known.bonds.length === 0 ? (
          <p className="muted">None yet. It is paired at a box: open the box’s page there, with the device at hand.</p>
        ) : (
          <ul className="lines">
            {value.known.bonds.map((b) => (
              <BondLine key={b.id} bond={b} may={may} onChanged={reload} />
            ))}
          </ul>
        )}
        <Introductions known={value.known} />
        {may && <Introduce device={device} known={value.known} onChanged={reload} />}
      </section>
      {may && <Decisions decisions={value.decisions} />}
    </div>
  );
}

function BondLine({ bond, may, onChanged }: { bond: Bond; may: boolean; onChanged: () => void }) {
  const { clinic } = useApp();
  const [sure, setSure] = useState(false);
  const { busy, error, run } = useTask();
  const revoke = async () => {
    if (await run(() => clinic.client.revoke(bond.id))) onChanged();
    setSure(false);
  };
  return (
    <li data-testid="bond" data-gateway={bond.gatewayId}>
      <div className="line">
        <strong>{bond.gatewayName}</strong>
        <span className="muted" title={bond.adapter}>
          {HOW[bond.how] ?? sentence(bond.how).toLowerCase()} <Ago at={bond.since} />
        </span>
        {bond.revokedAt !== null ? (
          <span className="chip held">being taken off</span>
        ) : (
          may && !sure && (
            <button type="button" className="button small" onClick={() => setSure(true)} data-testid="take-off">
              Take off…
            </button>
          )
        )}
      </div>
      {sure && (
        <div className="sure">
          <p>
            {bond.gatewayName} will no longer know this device. To bring it back, pair or introduce it again.
          </p>
          <button type="button" className="button small primary" disabled={busy} onClick={() => void revoke()} data-testid="take-off-sure">
            Take off
          </button>
          <button type="button" className="button small" onClick={() => setSure(false)}>
            Keep
          </button>
        </div>
      )}
      {error && <ErrorBox error={error} />}
    </li>
  );
}

function Introductions({ known }: { known: Bonds }) {
  const gateways = useStore('gateways', (s) => s.gateways);
  const { zone } = useApp();
  // One that came to nothing is no news once the gateway knows the device some other way.
  const open = known.introductions.filter(
    (i) => i.state === 'open' || (i.state === 'expired' && !known.bonds.some((b) => b.gatewayId === i.toGateway)),
  );
  if (open.length === 0) return null;
  const name = (id: string) => gateways.find((g) => g.id === id)?.name ?? 'another gateway';
  return (
    <ul className="lines" data-testid="introductions">
      {open.map((i) => (
        <li key={i.id} className="line">
          <strong>{name(i.toGateway)}</strong>
          {i.state === 'open' ? (
            <span className="muted">
              {name(i.fromGateway)} introduces it, until {zone.minute(i.expiresAt)}. It happens when the device is next near {name(i.toGateway)}.
            </span>
          ) : (
            <span className="muted">
              was not introduced in time: the device was not near it. Asked <Ago at={i.askedAt} />.
            </span>
          )}
        </li>
      ))}
    </ul>
  );
}

function Introduce({ device, known, onChanged }: { device: Device; known: Bonds; onChanged: () => void }) {
  const { clinic } = useApp();
  const gateways = useStore('gateways', (s) => s.gateways);
  const [to, setTo] = useState('');
  const { busy, error, run } = useTask();
  const taken = new Set([
    ...known.bonds.map((b) => b.gatewayId),
    ...known.introductions.filter((i) => i.state === 'open').map((i) => i.toGateway),
  ]);
  const free = gateways.filter((g) => !taken.has(g.id));
  if (known.bonds.length === 0 || free.length === 0) return null;
  const introduce = async () => {
    if (await run(() => clinic.client.introduce(device.id, to))) {
      setTo('');
      onChanged();
    }
  };
  return (
    <form className="inline" onSubmit={(e) => { e.preventDefault(); void introduce(); }}>
      <label>
        <span className="sr">Another gateway</span>
        <select value={to} onChange={(e) => setTo(e.target.value)} data-testid="introduce-to">
          <option value="">Introduce to another gateway…</option>
          {free.map((g) => (
            <option key={g.id} value={g.id}>
              {g.name}
            </option>
          ))}
        </select>
      </label>
      <button type="submit" className="button small primary" disabled={busy || to === ''} data-testid="introduce">
        Introduce
      </button>
      {error && <ErrorBox error={error} />}
    </form>
  );
}

const DECISIONS: Record<string, string> = {
  assigned: 'given to a wearer',
  unassigned: 'taken back from its wearer',
  paired: 'paired',
  forgotten: 'forgotten',
};

const REFUSALS: Record<string, string> = {
  assigned_elsewhere: 'not done: it is another clinic’s at that time',
  conflict: 'not done: it contradicts another assignment',
  order: 'not done: the frame it names does not fit',
  boundary: 'not done: assign it again while it is connected',
};

function Decisions({ decisions }: { decisions: readonly Decision[] }) {
  const { zone } = useApp();
  const gateways = useStore('gateways', (s) => s.gateways);
  if (decisions.length === 0) return null;
  return (
    <section className="card panel" aria-labelledby="decisions-title" data-testid="decisions">
      <h2 id="decisions-title">Done at the boxes</h2>
      <ul className="lines">
        {decisions.map((d) => (
          <li key={`${d.gatewayId}${d.id}`} className="line">
            <span className="muted">{zone.minute(d.at)}</span>
            <span>{DECISIONS[d.kind] ?? sentence(d.kind).toLowerCase()}</span>
            <span className="muted">
              by {d.actor} at {gateways.find((g) => g.id === d.gatewayId)?.name ?? 'a box'}
            </span>
            {d.refused && <span className="warn">{REFUSALS[d.refused] ?? 'waits for something that has not come yet'}</span>}
          </li>
        ))}
      </ul>
    </section>
  );
}
