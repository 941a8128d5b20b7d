import { useId, useState } from 'react';
import type { ReadingType, Rule } from '../api/types';
import { useApp, useStore } from '../context';
import { sentence, typeName, unit, value } from '../format';
import { called } from '../names';
import { typed } from '../numbers';
import { ErrorBox, Icon } from './parts';
import { useLoaded, useTask } from './useTask';

/** What a rule can be about: readings that mean something minute by minute, and events. */
const READINGS = ['heart_rate', 'skin_temperature', 'eda', 'spo2', 'battery'] as const;
const EVENTS = ['hot_flash', 'battery_low'] as const;
const UNITS: Record<string, string> = { heart_rate: 'bpm', skin_temperature: '°C', eda: 'µS', spo2: '%', battery: '%' };
/** How long a reading is awaited where it comes more seldom than once a minute. */
const SELDOM_S = 60;

/** When the clinic wants to be alerted. */
export default function RulesView() {
  const { clinic } = useApp();
  const id = useId();
  const { value: rules, error, reload } = useLoaded(() => clinic.client.rules());
  return (
    <div className="detail">
      <a className="back" href="#/">
        <Icon name="back" />
        All wearers
      </a>
      <h1>Alert rules</h1>
      <p className="muted intro">
        A rule raises an alert on this clinic’s page. It holds from when it is made, also for readings that come late. What comes within ten
        minutes of an alert belongs to it.
      </p>
      <div className="panels">
        <section className="card panel" aria-labelledby={`${id}-title`} data-testid="rules">
          <h2 id={`${id}-title`}>Rules</h2>
          {error && <ErrorBox error={error} onRetry={reload} />}
          {rules?.length === 0 && <p className="muted">None yet: nobody is alerted of anything.</p>}
          <ul className="lines">
            {rules?.map((rule) => (
              <RuleLine key={rule.id} rule={rule} onEnded={reload} />
            ))}
          </ul>
        </section>
        <AddRule onAdded={reload} />
      </div>
    </div>
  );
}

function says(rule: Rule): string {
  if (rule.eventType !== null) {
    const sure = rule.leastConfidence === null ? '' : `, from ${Math.round(rule.leastConfidence * 100)} % confidence`;
    return `${sentence(rule.eventType)}${sure}`;
  }
  const type = rule.readingType ?? '';
  const bound = rule.above === null ? `below ${value(rule.below, type)}` : `above ${value(rule.above, type)}`;
  return `${typeName(type)} ${bound} ${unit(UNITS[type] ?? '')} for ${rule.minutes} min`;
}

function RuleLine({ rule, onEnded }: { rule: Rule; onEnded: () => void }) {
  const { clinic, session } = useApp();
  const wearer = useStore('users', (s) => s.users.find((u) => u.id === rule.userId));
  const { busy, error, run } = useTask();
  const end = async () => {
    if (await run(() => clinic.client.endRule(rule.id))) onEnded();
  };
  return (
    <li data-testid="rule">
      <div className="line">
        <strong>{rule.name}</strong>
        <span className={`severity ${rule.severity}`}>{rule.severity}</span>
        <span className="muted">
          {says(rule)}
          {rule.userId !== null && `, ${called(wearer, 'one wearer')} only`}
        </span>
        {session.member.role !== 'viewer' && (
          <button type="button" className="button small" disabled={busy} onClick={() => void end()}>
            End<span className="sr"> rule {rule.name}</span>
          </button>
        )}
      </div>
      {error && <ErrorBox error={error} />}
    </li>
  );
}

/** Why a bound would never raise an alert, in words; null: it may. */
function wrongBound(bound: number | null, about: string, type: ReadingType | undefined): string | null {
  if (bound === null) return 'Type a number, such as 38.5.';
  if (type && (bound < type.min || bound > type.max)) {
    return `${typeName(about)} is ${type.min} to ${type.max} ${type.unit}: such a rule would never raise an alert.`;
  }
  return null;
}

function AddRule({ onAdded }: { onAdded: () => void }) {
  const { clinic, session } = useApp();
  const id = useId();
  const users = useStore('users', (s) => s.users);
  const [about, setAbout] = useState<string>(READINGS[0]);
  const { busy, error, run } = useTask();
  const { value: types } = useLoaded(() => clinic.client.readingTypes());
  const type = types?.find((t) => t.name === about);
  const [bound, setBound] = useState('');
  const number = typed(bound);
  const ofEvent = (EVENTS as readonly string[]).includes(about);
  if (session.member.role === 'viewer') return null;
  const wrong = ofEvent || bound.trim() === '' ? null : wrongBound(number, about, type);
  const submit = async (form: HTMLFormElement) => {
    const data = new FormData(form);
    const field = (name: string) => String(data.get(name) ?? '').trim();
    const side = field('side') === 'below' ? 'below' : 'above';
    const condition = ofEvent
      ? { event_type: about }
      : { reading_type: about, [side]: number, minutes: Number(field('minutes')) };
    const added = await run(() =>
      clinic.client.addRule({ name: field('name'), severity: field('severity'), user_id: field('user') || null, ...condition }),
    );
    if (!added) return;
    form.reset();
    setBound('');
    setAbout(READINGS[0]);
    onAdded();
  };
  return (
    <section className="card panel" aria-labelledby={`${id}-title`}>
      <h2 id={`${id}-title`}>A new rule</h2>
      <form className="fields" onSubmit={(e) => { e.preventDefault(); void submit(e.currentTarget); }}>
        <label htmlFor={`${id}-name`}>Name</label>
        <input id={`${id}-name`} name="name" maxLength={100} required autoComplete="off" placeholder="Fast heart" data-testid="rule-name" />
        <label htmlFor={`${id}-about`}>About</label>
        <select id={`${id}-about`} name="about" value={about} onChange={(e) => setAbout(e.target.value)} data-testid="rule-about">
          {READINGS.map((type) => (
            <option key={type} value={type}>
              {typeName(type)}
            </option>
          ))}
          {EVENTS.map((type) => (
            <option key={type} value={type}>
              {sentence(type)} (event)
            </option>
          ))}
        </select>
        {!ofEvent && (
          <>
            <label htmlFor={`${id}-side`}>When the mean of a minute is</label>
            <select id={`${id}-side`} name="side">
              <option value="above">above</option>
              <option value="below">below</option>
            </select>
            <label htmlFor={`${id}-bound`}>
              Bound in {UNITS[about]}
              {type && `, ${type.min} to ${type.max}`}
            </label>
            <input
              id={`${id}-bound`}
              name="bound"
              inputMode="decimal"
              autoComplete="off"
              required
              value={bound}
              aria-invalid={wrong !== null}
              aria-describedby={`${id}-bound-wrong`}
              onChange={(e) => setBound(e.target.value)}
              ref={(input) => input?.setCustomValidity(wrong ?? '')}
              data-testid="rule-bound"
            />
            <span id={`${id}-bound-wrong`} className="muted" role="status" data-testid="rule-bound-wrong">
              {wrong ?? (type && type.intervalS > SELDOM_S ? `Comes every ${Math.round(type.intervalS / 60)} minutes.` : '')}
            </span>
            <label htmlFor={`${id}-minutes`}>For so many minutes without a break</label>
            <input id={`${id}-minutes`} name="minutes" type="number" min={1} max={720} defaultValue={5} required data-testid="rule-minutes" />
          </>
        )}
        <label htmlFor={`${id}-severity`}>Severity</label>
        <select id={`${id}-severity`} name="severity" defaultValue="warning">
          <option value="info">info</option>
          <option value="warning">warning</option>
          <option value="critical">critical</option>
        </select>
        <label htmlFor={`${id}-user`}>Of</label>
        <select id={`${id}-user`} name="user">
          <option value="">all wearers</option>
          {users.map((u) => (
            <option key={u.id} value={u.id}>
              {called(u, '')}
            </option>
          ))}
        </select>
        {error && <ErrorBox error={error} />}
        <div className="fields-act">
          <button type="submit" className="button small primary" disabled={busy} data-testid="rule-submit">
            Make rule
          </button>
        </div>
      </form>
    </section>
  );
}
