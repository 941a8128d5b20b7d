import { createRoot } from 'react-dom/client';
import { watchServerDate } from './api/http';
import { Auth } from './api/auth';
import { serverSaid } from './clock';
import { Root } from './views/Root';
import './styles.css';

watchServerDate(serverSaid);
const root = document.getElementById('root');
if (!root) throw new Error('index.html has no #root');
createRoot(root).render(<Root auth={new Auth()} />);
