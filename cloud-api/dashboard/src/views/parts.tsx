import { memo, type ReactNode } from 'react';
import { useClock } from '../clock';
import { ago } from '../format';

export function Logo() {
  return (
    <svg className="logo" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path d="M5 18h5l2.5-8 5 14 3.5-10 1.5 4H27" />
    </svg>
  );
}

export function ErrorBox({ error, onRetry }: { error: string; onRetry?: () => void }) {
  return (
    <div className="error-box" role="alert">
      <p>{error}</p>
      {onRetry && (
        <button type="button" className="button small" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <p className="empty-title">{title}</p>
      {children && <p>{children}</p>}
    </div>
  );
}

/** "12 s ago", kept current. */
export const Ago = memo(function Ago({ at }: { at: number }) {
  const text = useClock((now) => ago(at, now));
  return <time dateTime={new Date(at).toISOString()}>{text}</time>;
});

type IconName = 'back' | 'check' | 'link' | 'unlink' | 'wrist' | 'search' | 'logout' | 'sun' | 'moon' | 'auto' | 'box' | 'clock' | 'bell';

const ICONS: Record<IconName, string> = {
  back: 'M15 5l-7 7 7 7',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  link: 'M9 15l6-6M10.5 7.5l1.7-1.7a4 4 0 015.6 5.6l-1.7 1.7M13.5 16.5l-1.7 1.7a4 4 0 01-5.6-5.6l1.7-1.7',
  unlink: 'M10.5 7.5l1.7-1.7a4 4 0 015.6 5.6l-1.7 1.7M13.5 16.5l-1.7 1.7a4 4 0 01-5.6-5.6l1.7-1.7M4 4l16 16',
  wrist: 'M8 7h8a1.5 1.5 0 011.5 1.5v7A1.5 1.5 0 0116 17H8a1.5 1.5 0 01-1.500-1.500v-7A1.500 1.500 0 018 7zM9 7l.6-4h4.800L15 7M9 17l.6 4h4.800l.6-4',
  search: 'M11 4a7 7 0 100 14 7 7 0 000-14zM20 20l-4-4',
  logout: 'M14 4h4a2 2 0 012 2v12a2 2 0 01-2 2h-4M10 16l-4-4 4-4M6 12h10',
  sun: 'M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v2M12 20v2M2 12h2M20 12h2M4.900 4.900l1.400 1.400M17.700 17.700l1.400 1.400M4.900 19.100l1.400-1.400M17.700 6.300l1.400-1.400',
  moon: 'M20 14.500A8.500 8.500 0 019.500 4a8.500 8.500 0 1010.500 10.500z',
  auto: 'M12 4a8 8 0 100 16 8 8 0 000-16zM12 4v16M12 8h7M12 12h8M12 16h7',
  box: 'M4 14h16v5H4zM7 16.500h.01M6 14V9.500M12 4a7 7 0 017 7M12 7.500a3.500 3.500 0 013.500 3.500',
  clock: 'M12 4a8 8 0 100 16 8 8 0 000-16zM12 8v4.500l3 2',
  bell: 'M6 16V11a6 6 0 0112 0v5l1.500 2h-15zM10 20.500h4',
};

export function Icon({ name }: { name: IconName }) {
  return (
    <svg className="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}
