import { lazy, Suspense, useEffect, useMemo, useRef, useState, useSyncExternalStore } from 'react';
import { clockOffset, useClock } from '../clock';
import { useApp, useStore } from '../context';
import { ago, duration } from '../format';
import { isLost } from '../live/store';
import { readRoute, type Route } from '../route';
import { setTheme, useTheme } from '../theme';
import { called } from '../names';
import { Announcer } from './Announcer';
import { ErrorBox, Icon, Logo } from './parts';
import { Overview } from './Overview';

// The charts' code is fetched when a wearer is first opened; the roster is on screen sooner without it.
const WearerView = lazy(() => import('./WearerView'));
const DeviceView = lazy(() => import('./DeviceView'));
const BoxesView = lazy(() => import('./BoxesView'));
const RulesView = lazy(() => import('./RulesView'));

function useRoute(): Route {
  const hash = useSyncExternalStore((listener) => {
    addEventListener('hashchange', listener);
    return () => removeEventListener('hashchange', listener);
  }, () => location.hash);
  return useMemo(() => readRoute(hash), [hash]);
}

export function Shell({ onLogout }: { onLogout: () => void }) {
  const { session, clinic } = useApp();
  const route = useRoute();
  const id = route.id;
  const name = useStore(route.at === 'device' ? 'devices' : 'users', (s) => {
    if (route.at === 'boxes') return 'Boxes';
    if (route.at === 'rules') return 'Alert rules';
    return route.at === 'device' ? s.devices.find((d) => d.id === id)?.name : called(s.users.find((u) => u.id === id), '') || undefined;
  });
  const main = useRef<HTMLElement>(null);
  const before = useRef(route);
  const loadError = useSyncExternalStore(clinic.subscribeError, () => clinic.loadError);
  const state = useStore('connection', (s) => s.connection.state);
  const lost = useStore('connection', (s) => isLost(s.connection));

  useEffect(() => {
    document.title = `${name ? `${name} · ` : ''}${session.tenant.name} · Kinara`;
  }, [name, session.tenant.name]);

  useEffect(() => {
    // A new view starts at its top, for eyes and for screen readers.
    if (before.current === route) return;
    before.current = route;
    scrollTo(0, 0);
    main.current?.focus({ preventScroll: true });
  }, [route]);

  return (
    <>
      <a className="skip" href="#main" onClick={(e) => { e.preventDefault(); main.current?.focus(); }}>
        Skip to content
      </a>
      <header className="top">
        <a className="brand" href="#/" aria-label="Kinara: all wearers">
          <Logo />
          <span>Kinara</span>
        </a>
        <p className="tenant" data-testid="tenant-name" title={session.tenant.name}>
          {session.tenant.name}
        </p>
        <a className="ghost top-link" href="#/rules" aria-current={route.at === 'rules' ? 'page' : undefined} data-testid="rules-link">
          Rules
        </a>
        {session.member.role !== 'viewer' && (
          <a className="ghost top-link" href="#/boxes" aria-current={route.at === 'boxes' ? 'page' : undefined} data-testid="boxes-link">
            Boxes
          </a>
        )}
        <ConnectionPill />
        <div className="who">
          <span className="who-mail" title={session.member.email}>
            {session.member.email}
          </span>
          <span className="role">{session.member.role}</span>
        </div>
        <ThemeButton />
        <button type="button" className="ghost icon-button" onClick={onLogout} title="Log out">
          <Icon name="logout" />
          <span className="sr">Log out</span>
        </button>
      </header>
      <Banner />
      <ClockWarning />
      <main id="main" ref={main} tabIndex={-1} className={lost ? 'lost' : undefined}>
        {loadError && state === 'open' && <ErrorBox error={loadError} onRetry={() => void clinic.load()} />}
        <Suspense fallback={<p className="loading" role="status">Loading…</p>}>
          {route.at === 'wearer' ? (
            <WearerView key={id} userId={id} />
          ) : route.at === 'device' ? (
            <DeviceView key={id} deviceId={id} />
          ) : route.at === 'boxes' ? (
            <BoxesView />
          ) : route.at === 'rules' ? (
            <RulesView />
          ) : (
            <Overview />
          )}
        </Suspense>
      </main>
      <Announcer />
    </>
  );
}

function ConnectionPill() {
  const { state } = useStore('connection', (s) => s.connection);
  const words = { open: 'Live', connecting: 'Connecting…', lost: 'Connection lost' }[state];
  return (
    <p className={`pill ${state}`}>
      <span className="dot" aria-hidden="true" />
      {words}
    </p>
  );
}

/** Says honestly that what is on screen is old, since when, and when the page tries again. */
function Banner() {
  const { clinic, zone } = useApp();
  const { state, lastMessageAt, retryAt, reason } = useStore('connection', (s) => s.connection);
  const [lost, setLost] = useState(false);
  // A retry under way is still a lost connection to the reader; only an open one ends it.
  if (state === 'lost' && !lost) setLost(true);
  if (state === 'open' && lost) setLost(false);
  const age = useClock((now) => (lastMessageAt === null ? '' : ago(lastMessageAt, now)));
  const wait = useClock((now) => (retryAt === null ? '' : duration(Math.max(0, retryAt - now) + 999)));
  if (!lost) return null;
  return (
    <div className="banner" role="status">
      <p>
        <strong>Connection lost.</strong> {reason && `${reason} `}
        {lastMessageAt === null
          ? 'No update has come yet.'
          : <>Last update {zone.time(lastMessageAt)} <span aria-hidden="true">({age})</span>.</>}{' '}
        {state === 'connecting' ? 'Trying again now…' : <span aria-hidden="true">Trying again in {wait}.</span>}
      </p>
      <button type="button" className="button small" onClick={clinic.socket.retryNow} disabled={state === 'connecting'}>
        Try now
      </button>
    </div>
  );
}

function ClockWarning() {
  const off = useClock(() => Math.round(clockOffset() / 1000));
  if (Math.abs(off) < 30) return null;
  return (
    <p className="banner mild" role="status">
      This computer’s clock is {duration(Math.abs(off) * 1000)} {off > 0 ? 'behind' : 'ahead of'} the server’s. Times on this page follow the server.
    </p>
  );
}

function ThemeButton() {
  const theme = useTheme();
  const next = { system: 'light', light: 'dark', dark: 'system' } as const;
  const words = { system: 'as the system', light: 'light', dark: 'dark' }[theme];
  const icon = ({ system: 'auto', light: 'sun', dark: 'moon' } as const)[theme];
  return (
    <button type="button" className="ghost icon-button theme" title={`Colours: ${words}`} onClick={() => setTheme(next[theme])}>
      <Icon name={icon} />
      <span className="sr">Colours: {words}. Change.</span>
    </button>
  );
}
